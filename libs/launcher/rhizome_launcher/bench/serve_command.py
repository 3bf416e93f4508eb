"""`rhizome bench serve`: its options, its progress, its exit code."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rhizome_launcher.bench.errors import BenchError
from rhizome_launcher.bench.options import JsonOption, PlotOption, numbers, rates
from rhizome_launcher.bench.plot import plot_serve, require_matplotlib
from rhizome_launcher.bench.report import print_serve_tables, serve_json, write_json
from rhizome_launcher.bench.serve_bench import Level, ServeBench, ServeBenchResult, ServeBenchSettings
from rhizome_launcher.bench.slo import Slo
from rhizome_launcher.serve import EXIT_INTERRUPTED, interrupts

DEFAULT_CONCURRENCY = "1,8,32"
_LOAD = "Load"
_PROMPTS = "Prompts"
_RESULT = "Result"


def bench_serve(
    base_url: Annotated[
        str, typer.Option(help="An OpenAI-compatible server, with or without /v1.")
    ] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="Its name; default: the first one that the server lists.")] = "",
    api_key: Annotated[
        str, typer.Option(help="Sent as bearer token.", envvar="OPENAI_API_KEY", show_envvar=True)
    ] = "",
    endpoint: Annotated[
        Literal["chat", "completions"], typer.Option(help="/v1/chat/completions or /v1/completions.")
    ] = "chat",
    concurrency: Annotated[
        str,
        typer.Option(
            help=f"Closed loop: streams at a time, one level after another; default: {DEFAULT_CONCURRENCY}.",
            rich_help_panel=_LOAD,
        ),
    ] = "",
    waves: Annotated[
        bool,
        typer.Option(
            "--waves",
            help="Closed loop whose streams all start together and wait for each other; "
            "adds decode and prefill tokens/s as `bench engine` defines them.",
            rich_help_panel=_LOAD,
        ),
    ] = False,
    request_rate: Annotated[
        str,
        typer.Option(help="Open loop instead: requests/s, such as 0.5,2.", rich_help_panel=_LOAD),
    ] = "",
    burstiness: Annotated[
        float,
        typer.Option(
            help="Open loop: 1 is a Poisson process, less is burstier, more is more even.",
            min=1e-3,
            rich_help_panel=_LOAD,
        ),
    ] = 1.0,
    num_prompts: Annotated[
        int | None,
        typer.Option(
            help="Requests per level; default: 4 per stream or 30 s of arrivals, at least 16.",
            min=1,
            rich_help_panel=_LOAD,
        ),
    ] = None,
    warmup: Annotated[
        int, typer.Option(help="Requests before each level that do not count.", min=0, rich_help_panel=_LOAD)
    ] = 2,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds for one answer.", min=0.001, rich_help_panel=_LOAD)
    ] = 600.0,
    input_tokens: Annotated[
        int, typer.Option(help="Tokens of a prompt of random words.", min=1, rich_help_panel=_PROMPTS)
    ] = 128,
    output_tokens: Annotated[
        int, typer.Option(help="Tokens of an answer.", min=1, rich_help_panel=_PROMPTS)
    ] = 128,
    shared_prefix_tokens: Annotated[
        int,
        typer.Option(
            help="Input tokens at the start that all prompts share.", min=0, rich_help_panel=_PROMPTS
        ),
    ] = 0,
    dataset: Annotated[
        Path | None,
        typer.Option(
            help='JSONL instead of random words: {"messages": [...]} or {"prompt": "..."} a line.',
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, rich_help_panel=_PROMPTS)] = 0.0,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Of prompts, arrivals and sampling; default: another one each time, because a server "
            "remembers the prompts of the last run.",
            min=0,
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    send_seed: Annotated[
        bool, typer.Option(help="Send the field seed as well.", rich_help_panel=_PROMPTS)
    ] = False,
    ignore_eos: Annotated[
        bool,
        typer.Option(
            help="Ask for answers of exactly --output-tokens with the field ignore_eos, which vLLM, SGLang, "
            "llama.cpp and Rhizome know.",
            rich_help_panel=_PROMPTS,
        ),
    ] = True,
    slo: Annotated[
        str,
        typer.Option(
            help="Count requests within these bounds, such as ttft:200ms,tpot:50ms,e2e:2s.",
            rich_help_panel=_RESULT,
        ),
    ] = "",
    json_target: JsonOption = "",
    plot: PlotOption = None,
) -> None:
    """Load an OpenAI-compatible server, and measure latencies, throughput and goodput."""
    if concurrency and request_rate:
        raise BenchError("give --concurrency for a closed loop or --request-rate for an open one, not both.")
    if waves and request_rate:
        raise BenchError("--waves is a closed loop; it does not go with --request-rate.")
    if shared_prefix_tokens >= input_tokens:
        raise BenchError("--shared-prefix-tokens must be less than --input-tokens.")
    if request_rate:
        levels = [Level(rate=rate) for rate in rates(request_rate, "--request-rate")]
    else:
        streams = numbers(concurrency or DEFAULT_CONCURRENCY, "--concurrency")
        levels = [Level(concurrency=number) for number in streams]
    if plot is not None:
        require_matplotlib()
    chosen_seed = secrets.randbits(31) if seed is None else seed
    extra: dict[str, Any] = {"temperature": temperature}
    extra |= {"ignore_eos": True} if ignore_eos else {}
    extra |= {"seed": chosen_seed} if send_seed else {}
    settings = ServeBenchSettings(
        base_url=base_url,
        levels=tuple(levels),
        model=model,
        api_key=api_key,
        endpoint=endpoint,
        num_prompts=num_prompts,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        shared_prefix_tokens=shared_prefix_tokens,
        warmup=warmup,
        waves=waves,
        burstiness=burstiness,
        dataset=dataset,
        extra=extra,
        seed=chosen_seed,
        slo=Slo.parse(slo) if slo else None,
        timeout_s=timeout_s,
    )
    result = _measure(settings)
    print_serve_tables(Console(), settings, result)
    if plot is not None and result.levels:
        plot_serve(result, f"{result.model} at {base_url}", plot)
    if json_target:
        write_json(serve_json(settings, result), json_target)
    raise typer.Exit(_exit_code(result))


def _measure(settings: ServeBenchSettings) -> ServeBenchResult:
    """Run the benchmark on the fastest loop there is, with a progress bar on standard error."""

    async def main(progress: Progress) -> ServeBenchResult:
        task = progress.add_task("asking the server", total=None)

        def on_level(level: Level, count: int) -> None:
            kind = "requests/s" if level.concurrency is None else "streams"
            name = f"{level.rate:g}" if level.concurrency is None else level.label
            progress.reset(task, description=f"{name} {kind}", total=count)

        async with interrupts() as interrupted:
            bench = ServeBench(
                settings,
                interrupted,
                on_level=on_level,
                on_record=lambda record: progress.advance(task),
            )
            return await bench.run()

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with (
        Progress(
            *columns, console=console, refresh_per_second=2, transient=True, disable=not console.is_terminal
        ) as progress,
        asyncio.Runner(loop_factory=_loop_factory()) as runner,
    ):
        return runner.run(main(progress))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _exit_code(result: ServeBenchResult) -> int:
    if result.interrupted:
        return EXIT_INTERRUPTED
    return 0 if any(item.figures.succeeded for item in result.levels) else 1
