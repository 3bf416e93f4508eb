"""`rhizome simulate`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from rhizome_launcher.simulate.faults import parse_fault
from rhizome_launcher.simulate.physics import Physics

_PHYSICS = "Physics"
_DEFAULTS = Physics()


def simulate(
    kind: Annotated[str, typer.Option(help="vllm, sglang, llamacpp, tgi, ollama, openai or rhizome.")],
    port: Annotated[
        int, typer.Option(help="Port of the first server; 0 takes free ones.", min=0, max=65535)
    ] = 0,
    count: Annotated[int, typer.Option(help="Servers, on ports that follow each other.", min=1)] = 1,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    served_model_name: Annotated[str, typer.Option(help="Name in the API.")] = "simulated",
    model: Annotated[
        Path, typer.Option("--model", "-m", help="Kind rhizome: checkpoint whose tokenizer is handed out.")
    ] = Path("models/demo"),
    prefill_rate: Annotated[
        float, typer.Option(help="Prompt tokens computed per second.", rich_help_panel=_PHYSICS)
    ] = _DEFAULTS.prefill_tokens_per_s,
    itl_base_ms: Annotated[
        float, typer.Option(help="Time between tokens, for a batch of any size,", rich_help_panel=_PHYSICS)
    ] = _DEFAULTS.itl_base_ms,
    itl_per_request_ms: Annotated[
        float, typer.Option(help="and so much more per request in the batch.", rich_help_panel=_PHYSICS)
    ] = _DEFAULTS.itl_per_request_ms,
    kv_blocks: Annotated[
        int, typer.Option(help="Blocks of the KV cache.", rich_help_panel=_PHYSICS)
    ] = _DEFAULTS.kv_blocks,
    block_size: Annotated[
        int, typer.Option(help="Tokens per block.", rich_help_panel=_PHYSICS)
    ] = _DEFAULTS.block_size,
    max_running: Annotated[
        int, typer.Option(help="Most requests in a batch; others wait.", rich_help_panel=_PHYSICS)
    ] = _DEFAULTS.max_running,
    step_tokens: Annotated[
        int, typer.Option(help="Most tokens per step, prompt chunks included.", rich_help_panel=_PHYSICS)
    ] = _DEFAULTS.step_tokens,
    prefix_cache: Annotated[
        bool, typer.Option(help="Keep blocks for prompts that begin alike.", rich_help_panel=_PHYSICS)
    ] = True,
    noise: Annotated[
        float, typer.Option(help="Spread of step times, as a part of them.", rich_help_panel=_PHYSICS)
    ] = 0.0,
    noise_seed: Annotated[
        int, typer.Option(help="The same seed gives the same noise.", rich_help_panel=_PHYSICS)
    ] = 0,
    context: Annotated[int, typer.Option(help="Most tokens of prompt and output together.", min=2)] = 131_072,
    default_max_tokens: Annotated[
        int, typer.Option(help="Length of answers where a request sets no limit.", min=1)
    ] = 128,
    speed: Annotated[float, typer.Option(help="Simulated seconds per second.", min=0.001)] = 1.0,
    kv_events: Annotated[
        str,
        typer.Option(help="Kinds vllm, sglang: publish KV events on tcp://127.0.0.1:5557 or ipc:///path."),
    ] = "",
    kv_replay: Annotated[str, typer.Option(help="Where who missed KV events gets them again.")] = "",
    kv_events_as_lists: Annotated[
        bool, typer.Option("--kv-events-as-lists", help="KV events as older versions of vLLM wrote them.")
    ] = False,
    fault: Annotated[
        list[str] | None,
        typer.Option(help="Fail from the start: stall, reset=5, status=503 ...; may be repeated."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print a line per server and second.")] = False,
) -> None:
    """Run simulated inference servers: real ports and protocols, no model; until Ctrl-C."""
    # Imported late: gRPC and ZeroMQ would slow down every other command.
    import uvloop

    from rhizome_launcher.simulate.fleet import KINDS, RHIZOME, FleetError, FleetSettings, run_fleet

    try:
        if kind not in KINDS:
            raise ValueError(f"--kind is one of {', '.join(KINDS)}")
        settings = FleetSettings(
            kind=kind,
            count=count,
            host=host,
            port=port,
            model=served_model_name,
            checkpoint=model,
            physics=Physics(
                prefill_tokens_per_s=prefill_rate,
                itl_base_ms=itl_base_ms,
                itl_per_request_ms=itl_per_request_ms,
                kv_blocks=kv_blocks,
                block_size=block_size,
                max_running=max_running,
                step_tokens=step_tokens,
                prefix_cache=prefix_cache,
                noise=noise,
                noise_seed=noise_seed,
            ),
            speed=speed,
            context_tokens=context,
            default_max_tokens=default_max_tokens,
            kv_events=_events_of(kind, kv_events),
            kv_replay=_events_of(kind, kv_replay),
            kv_events_as_lists=kv_events_as_lists,
            faults=dict(parse_fault(one) for one in fault or ()),
            verbose=verbose,
        )
        # grpc.aio wakes up through asyncio's own loop; everything else is cheaper on uvloop.
        asyncio.Runner(loop_factory=None if kind == RHIZOME else uvloop.new_event_loop).run(
            run_fleet(settings)
        )
    except (FleetError, ValueError) as error:
        text = f"[red]error:[/red] {escape(str(error))}"
        Console(stderr=True).print(text, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _events_of(kind: str, endpoint: str) -> str:
    if endpoint and kind not in ("vllm", "sglang"):
        raise ValueError("KV events over ZeroMQ belong to the kinds vllm and sglang")
    return endpoint
