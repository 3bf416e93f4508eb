"""`rhizome bench engine`, `rhizome eval perplexity` and `rhizome eval skills`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rhizome_launcher.bench.engine_process import evaluate
from rhizome_launcher.bench.errors import BenchError
from rhizome_launcher.bench.options import (
    DeviceOption,
    DtypeOption,
    EngineOptions,
    JsonOption,
    ModelPathOption,
    PlotOption,
    QuantizationOption,
    numbers,
)
from rhizome_launcher.bench.plot import plot_engine, require_matplotlib
from rhizome_launcher.bench.report import number, plain_table, write_json
from rhizome_launcher.serve import EXIT_INTERRUPTED

_MIB = 1 << 20


def bench_engine(
    model: ModelPathOption,
    rows: Annotated[str, typer.Option(help="Streams at a time, one level after another.")] = "1,8,32",
    input_tokens: Annotated[int, typer.Option(help="Random tokens of a prompt.", min=1)] = 128,
    output_tokens: Annotated[int, typer.Option(help="Tokens of an answer.", min=1)] = 33,
    repeat: Annotated[int, typer.Option(help="Runs of each level; the median counts.", min=1)] = 3,
    quantization: QuantizationOption = "",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    engine_option: EngineOptions = None,
    json_target: JsonOption = "",
    plot: PlotOption = None,
) -> None:
    """Measure the engine alone: scheduler, cache and model in one process, no ports."""
    if plot is not None:
        require_matplotlib()
    report = evaluate(
        [
            "speed",
            *_engine_arguments(model, quantization, device, dtype, engine_option),
            f"--rows={','.join(map(str, numbers(rows, '--rows')))}",
            f"--input-tokens={input_tokens}",
            f"--output-tokens={output_tokens}",
            f"--repeat={repeat}",
        ]
    )
    console = Console()
    table = plain_table("streams", "prefill tok/s", "decode tok/s", "output tok/s", "TTFT ms", "step ms")
    for run in report["levels"]:
        names = ("prefill_tok_s", "decode_tok_s", "output_tok_s", "ttft_ms", "step_ms")
        table.add_row(str(run["streams"]), *(number(run[name]) for name in names))
    console.print(table, highlight=False)
    loaded, peak = report["rss_loaded_bytes"] / _MIB, report["rss_peak_bytes"] / _MIB
    memory = f"memory {loaded:,.0f} MiB after loading, {peak:,.0f} MiB at most"
    if report["cuda_peak_bytes"] is not None:
        memory += f", {report['cuda_peak_bytes'] / _MIB:,.0f} MiB on the GPU"
    console.print(
        f"loaded in {report['load_s']:.2f} s; {memory}; room for {report['kv_tokens']:,} tokens in the cache",
        highlight=False,
        soft_wrap=True,
    )
    if plot is not None and report["levels"]:
        plot_engine(report["levels"], _title(report), plot)
    _finish(report, json_target)


def eval_perplexity(
    model: ModelPathOption,
    text: Annotated[str, typer.Option(help="UTF-8 text file; - for standard input.")],
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of a window; default: 1024, or the model's limit.", min=2),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens by which a window starts later; default: half a window.", min=1),
    ] = None,
    quantization: QuantizationOption = "",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    engine_option: EngineOptions = None,
    json_target: JsonOption = "",
) -> None:
    """Score a text: perplexity and bits per byte with the engine's own kernels and weights."""
    arguments = ["perplexity", *_engine_arguments(model, quantization, device, dtype, engine_option)]
    arguments.append(f"--text={text}")
    arguments += [] if context is None else [f"--context={context}"]
    arguments += [] if stride is None else [f"--stride={stride}"]
    report = evaluate(arguments)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    window = f"windows of {report['context']} tokens, {report['stride']} apart"
    table.add_row("tokens scored", f"{report['tokens_scored']:,} ({window})")
    per_token, error = report["nll_per_token"], report["nll_per_token_standard_error"]
    table.add_row("negative log likelihood", f"{per_token:.4f} ± {error:.4f} nats per token")
    table.add_row("bits per byte", f"{report['bits_per_byte']:.4f}")
    perplexity, error = report["perplexity"], report["perplexity_standard_error"]
    table.add_row("perplexity", f"[bold]{perplexity:.4f}[/bold] ± {error:.4f}")
    Console().print(table, highlight=False)
    _finish(report, json_target)


def eval_skills(
    model: ModelPathOption = Path("models/demo"),
    corpus: Annotated[
        Path,
        typer.Option(help="The demo model's corpus.py, which is run to make the questions, or a JSONL file."),
    ] = Path("models/demo/corpus.py"),
    n: Annotated[int, typer.Option("--n", help="Questions of each skill.", min=1)] = 50,
    seed: Annotated[int, typer.Option(help="Which questions.")] = 0,
    quantization: QuantizationOption = "",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    engine_option: EngineOptions = None,
    json_target: JsonOption = "",
) -> None:
    """Ask the demo model's questions, and count the answers that are right to the letter."""
    report = evaluate(
        [
            "skills",
            *_engine_arguments(model, quantization, device, dtype, engine_option),
            f"--corpus={corpus}",
            f"--n={n}",
            f"--seed={seed}",
        ]
    )
    table = plain_table("skill", "right", "asked", "share")
    for skill, score in report["skills"].items():
        table.add_row(skill, str(score["right"]), str(score["asked"]), f"{score['share']:.1%}")
    table.add_row("all", "", "", f"[bold]{report['mean_share']:.1%}[/bold]")
    Console().print(table, highlight=False)
    _finish(report, json_target)


def _engine_arguments(
    model: Path, quantization: str, device: str, dtype: str, engine_option: list[str] | None
) -> list[str]:
    if not (model / "config.json").is_file():
        raise BenchError(f"{model} is no checkpoint: there is no config.json; give a directory with --model.")
    options = [f"device={device}", f"dtype={dtype}", *(engine_option or [])]
    options += [f"quantization={quantization}"] if quantization else []
    return [f"--model={model}", *(f"--engine-option={option}" for option in options)]


def _title(report: dict[str, Any]) -> str:
    options = report["engine_options"]
    kind = " ".join(str(options[name]) for name in ("quantization", "dtype") if name in options)
    return f"{report['model']} ({kind}), {report['input_tokens']} + {report['output_tokens']} tokens"


def _finish(report: dict[str, Any], json_target: str) -> None:
    if report["interrupted"]:
        Console().print("[yellow]interrupted:[/yellow] these are the figures so far", highlight=False)
    if json_target:
        write_json(report, json_target)
    raise typer.Exit(EXIT_INTERRUPTED if report["interrupted"] else 0)
