"""Tables for people and one JSON object for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rhizome_launcher.bench.errors import BenchError
from rhizome_launcher.bench.figures import LATENCIES, QUANTILES, Figures
from rhizome_launcher.bench.serve_bench import LevelResult, ServeBenchResult, ServeBenchSettings

LATENCY_NAMES = {"ttft": "TTFT", "itl": "ITL", "tpot": "TPOT", "e2e": "end to end"}
BUSY_CLIENT_SHARE = 0.7
LENGTH_TOLERANCE = 0.1
CACHED_TOLERANCE = 0.2
_SIGNIFICANT_DIGITS = 7


def serve_json(settings: ServeBenchSettings, result: ServeBenchResult) -> dict[str, Any]:
    """The whole result, with what is needed to repeat it."""
    return {
        "benchmark": "serve",
        "base_url": settings.base_url,
        "endpoint": settings.endpoint,
        "model": result.model,
        "input_tokens": None if settings.dataset else settings.input_tokens,
        "output_tokens": settings.output_tokens,
        "shared_prefix_tokens": settings.shared_prefix_tokens,
        "dataset": str(settings.dataset) if settings.dataset else None,
        "waves": settings.waves,
        "burstiness": settings.burstiness,
        "seed": settings.seed,
        "extra": dict(settings.extra),
        "slo_ms": {metric: 1e3 * bound for metric, bound in settings.slo.bounds_s.items()}
        if settings.slo
        else None,
        "interrupted": result.interrupted,
        "levels": [
            {
                "concurrency": item.level.concurrency,
                "request_rate_s": item.level.rate,
                **item.figures.to_json(),
            }
            for item in result.levels
        ],
    }


def print_serve_tables(console: Console, settings: ServeBenchSettings, result: ServeBenchResult) -> None:
    """Rates of every level, its latencies, and what a reader should know before believing them."""
    if not result.levels:
        console.print("nothing was measured", highlight=False)
        return
    console.print(_rates(result, with_slo=settings.slo is not None), highlight=False)
    console.print(_latencies(result), highlight=False)
    for item in result.levels:
        for text in _remarks(item, settings):
            console.print(
                f"[yellow]{item.level.label}:[/yellow] {escape(text)}", highlight=False, soft_wrap=True
            )
    if result.interrupted:
        console.print("[yellow]interrupted:[/yellow] these are the figures so far", highlight=False)


def write_json(report: Mapping[str, Any], target: str) -> None:
    """Write one JSON object: to a file, or as the last line of standard output for `-`.

    Raises:
        BenchError: the file cannot be written.
    """
    text = json.dumps(_rounded(report), ensure_ascii=False, allow_nan=False)
    if target == "-":
        print(text, flush=True)
        return
    try:
        Path(target).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise BenchError(f"the report cannot be written to {target}: {error.strerror}.") from None


def number(value: float | None, digits: int = 1) -> str:
    """A figure in a table; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def plain_table(*columns: str, first: str = "left") -> Table:
    """A table without frame whose columns but the first are numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else first)  # type: ignore[arg-type]
    return table


def _load_name(result: ServeBenchResult) -> str:
    return "rate" if result.levels[0].level.concurrency is None else "streams"


def _rates(result: ServeBenchResult, *, with_slo: bool) -> Table:
    columns = [_load_name(result), "ok", "failed", "requests/s", "output tok/s", "total tok/s"]
    decode = any(item.figures.decode_tok_s is not None for item in result.levels)
    columns += ["decode tok/s", "prefill tok/s"] if decode else []
    columns += ["goodput/s", "good"] if with_slo else []
    table = plain_table(*columns)
    for item in result.levels:
        figures = item.figures
        row = [
            item.level.label,
            str(figures.succeeded),
            str(figures.requests - figures.succeeded),
            number(figures.per_second(figures.succeeded), 2),
            number(figures.per_second(figures.output_tokens)),
            number(figures.per_second(figures.prompt_tokens + figures.output_tokens)),
        ]
        if decode:
            row += [number(figures.decode_tok_s), number(figures.prefill_tok_s)]
        if figures.good is not None:
            row += [
                number(figures.per_second(figures.good), 2),
                f"{figures.good / (figures.requests or 1):.0%}",
            ]
        table.add_row(*row)
    return table


def _latencies(result: ServeBenchResult) -> Table:
    table = plain_table(_load_name(result), "ms", "mean", *QUANTILES)
    for item in result.levels:
        for place, name in enumerate(LATENCIES):
            distribution = item.figures.latencies[name]
            values = [None] * (1 + len(QUANTILES))
            if distribution is not None:
                values = [distribution.mean, *distribution.percentiles.values()]  # type: ignore[list-item]
            table.add_row(
                "" if place else item.level.label, LATENCY_NAMES[name], *(number(value) for value in values)
            )
    return table


def _remarks(item: LevelResult, settings: ServeBenchSettings) -> list[str]:
    """What went wrong, and what makes the figures mean something else than they seem to."""
    figures = item.figures
    remarks = [f"{count} x {kind}: {figures.example_errors[kind]}" for kind, count in figures.failed.items()]
    if figures.unfinished:
        remarks.append(f"{figures.unfinished} requests were still open")
    if figures.succeeded:
        remarks += _remarks_on_lengths(figures, settings)
    if figures.client_cpu_share > BUSY_CLIENT_SHARE:
        share = f"{figures.client_cpu_share:.0%}"
        remarks.append(f"this client used {share} of a core; the figures may show it, not the server")
    return remarks


def _remarks_on_lengths(figures: Figures, settings: ServeBenchSettings) -> list[str]:
    """Where prompts and answers were not as long, or not as new, as was asked for."""
    remarks = []
    if not figures.tokens_counted_by_server:
        remarks.append("the server reports no usage: pieces of the stream were counted as tokens")
    elif settings.dataset is None:
        lengths = (
            ("prompts", figures.prompt_tokens, settings.input_tokens),
            ("answers", figures.output_tokens, settings.output_tokens),
        )
        for what, tokens, wanted in lengths:
            mean = tokens / figures.succeeded
            if abs(mean - wanted) > LENGTH_TOLERANCE * wanted:
                remarks.append(f"{what} had {mean:.0f} tokens on average, not {wanted}")
    expected = settings.shared_prefix_tokens * figures.succeeded
    if figures.cached_tokens > expected + CACHED_TOLERANCE * figures.prompt_tokens:
        share = figures.cached_tokens / figures.prompt_tokens
        remarks.append(f"{share:.0%} of the prompt tokens were in the server's cache already")
    ttft = figures.latencies["ttft"]
    if silent := figures.succeeded - (ttft.count if ttft else 0):
        remarks.append(f"{silent} answers had no text, so they have no TTFT")
    return remarks


def _rounded(value: Any) -> Any:
    """Floats with more digits than a measurement deserves, but no more."""
    if isinstance(value, float):
        return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
