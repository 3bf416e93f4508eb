"""Figures as pictures. matplotlib is large, so it is an extra: `pip install rhizome-launcher[plot]`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rhizome_launcher.bench.errors import BenchError
from rhizome_launcher.bench.figures import latencies_s
from rhizome_launcher.bench.report import LATENCY_NAMES
from rhizome_launcher.bench.serve_bench import LevelResult, ServeBenchResult

_DPI = 120
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0", "#9c6b4e", "#97bbf5")


def require_matplotlib() -> None:
    """Notice before a long measurement that its plot could not be drawn.

    Raises:
        BenchError: matplotlib is not installed.
    """
    _figure_class()


def plot_serve(result: ServeBenchResult, title: str, path: Path) -> None:
    """Draw output tokens per second of each level, and how TTFT, ITL and whole answers were distributed.

    Raises:
        BenchError: matplotlib is missing, the file cannot be written, or nothing was measured.
    """
    levels = [item for item in result.levels if item.figures.succeeded]
    if not levels:
        raise BenchError(f"there is nothing to draw in {path}: no request succeeded.")
    figure, axes = _canvas(title, 4)
    kind = "requests/s" if levels[0].level.concurrency is None else "streams"
    labels = [item.level.label for item in levels]
    speeds = [item.figures.per_second(item.figures.output_tokens) for item in levels]
    _bars(axes[0], labels, speeds, f"output tokens/s by {kind}")
    for axis, name in zip(axes[1:], ("ttft", "itl", "e2e"), strict=True):
        for item, label, colour in zip(levels, labels, _COLOURS * len(levels), strict=False):
            times = sorted(1e3 * value for value in latencies_s(r for r in item.records if r.ok)[name])
            if times:
                shares = [(place + 1) / len(times) for place in range(len(times))]
                axis.step(times, shares, where="post", color=colour, label=label)
        axis.set_title(f"{LATENCY_NAMES[name]}: share of all below")
        axis.set_xlabel("ms")
        axis.set_xlim(0, _right_edge(levels, name))
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right", frameon=False, title=kind)
    _save(figure, path)


def plot_engine(runs: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw decode and prefill tokens per second by the number of streams.

    Raises:
        BenchError: matplotlib is missing or the file cannot be written.
    """
    figure, axes = _canvas(title, 2)
    labels = [str(run["streams"]) for run in runs]
    for axis, name in zip(axes, ("decode", "prefill"), strict=True):
        _bars(axis, labels, [run[f"{name}_tok_s"] or 0.0 for run in runs], f"{name} tokens/s by streams")
    _save(figure, path)


def _figure_class() -> Any:
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise BenchError(
            f"--plot needs matplotlib ({error}): pip install 'rhizome-launcher[plot]', or leave --plot out."
        ) from None


def _canvas(title: str, panels: int) -> tuple[Any, list[Any]]:
    """A figure without pyplot, whose state and windows nobody needs."""
    rows, columns = (2, 2) if panels == 4 else (1, panels)
    figure = _figure_class()(figsize=(5.2 * columns, 3.6 * rows), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def _right_edge(levels: Sequence[LevelResult], name: str) -> float | None:
    """A little beyond the largest p99: a single outlier would squeeze everything else into a corner."""
    known = [latency for item in levels if (latency := item.figures.latencies[name]) is not None]
    largest = max((latency.percentiles["p99"] for latency in known), default=0.0)
    return 1.1 * largest or None


def _bars(axis: Any, labels: list[str], values: list[float], title: str) -> None:
    bars = axis.bar(labels, values, width=0.6, color=_COLOURS[0])
    axis.bar_label(bars, fmt="{:,.0f}" if max(values) >= 100 else "{:,.1f}", padding=2)
    axis.set_title(title)
    axis.margins(y=0.12)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=_DPI)
    except (OSError, ValueError) as error:
        raise BenchError(f"the plot cannot be written to {path}: {error}.") from None
