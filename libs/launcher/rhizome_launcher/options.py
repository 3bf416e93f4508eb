"""Options that several commands share, and how a command ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from rhizome_launcher.plan import StackError
from rhizome_launcher.serve import EXIT_INTERRUPTED

ModelOption = Annotated[
    Path,
    typer.Option("--model", "-m", help="Checkpoint: config.json, tokenizer.json, *.safetensors."),
]
HostOption = Annotated[str, typer.Option(help="Address that the gateway listens on.")]
PortOption = Annotated[int, typer.Option(help="Port of the gateway.", min=1, max=65535)]
EnginesOption = Annotated[int, typer.Option(help="Engines; from two on a proxy balances them.", min=1)]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
QuantizationOption = Annotated[str, typer.Option(help="none, int8, fp8 or int4: round weights on loading.")]
KVMemoryOption = Annotated[
    str, typer.Option(help="Memory for keys and values of each engine: 4GiB, or 60% of what is free.")
]
EngineArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[-- ENGINE OPTIONS]",
        help="After --, options of each engine, such as --max-step-tokens 1024; see rhizome-engine --help.",
        show_default=False,
    ),
]
DirectOption = Annotated[
    bool,
    typer.Option(
        "--direct/--grpc", help="One engine: the gateway reaches it over ZeroMQ, or through its gRPC front."
    ),
]
KeysFileOption = Annotated[
    Path | None, typer.Option(help="Who may come in, see `rhizome keys`; without it only this machine.")
]
AllowOpenOption = Annotated[
    bool, typer.Option("--allow-open", help="Without keys, listen on other addresses than loopback.")
]
WorkersOption = Annotated[int, typer.Option(help="Processes of the gateway.", min=1, max=64)]
NameOption = Annotated[
    str, typer.Option("--served-model-name", help="Name in the API; default: the directory's.")
]


def engine_arguments_of(
    device: str, dtype: str, quantization: str, kv_memory: str, served_model_name: str, more: list[str] | None
) -> tuple[str, ...]:
    """Options of an engine as its command line."""
    arguments = ["--device", device, "--dtype", dtype, "--quantization", quantization]
    if kv_memory:
        arguments += ["--kv-memory", kv_memory]
    if served_model_name:
        arguments += ["--served-model-name", served_model_name]
    return (*arguments, *(more or []))


def gateway_arguments_of(keys_file: Path | None, allow_open: bool, workers: int) -> tuple[str, ...]:
    """Options of a gateway as its command line."""
    arguments = ["--workers", str(workers)]
    if keys_file is not None:
        arguments += ["--keys-file", str(keys_file)]
    if allow_open:
        arguments.append("--allow-open")
    return tuple(arguments)


@contextlib.contextmanager
def explain() -> Iterator[None]:
    """Show a person what went wrong, without a traceback."""
    try:
        yield
    except StackError as error:
        text = f"[red]error:[/red] {escape(str(error))}"
        Console(stderr=True).print(text, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def run_to_exit(main: Coroutine[Any, Any, int]) -> None:
    """Run a coroutine to its exit code."""
    # The services talk over loopback, which a proxy of the environment could not reach.
    os.environ.setdefault("no_grpc_proxy", "127.0.0.1")
    with explain():
        try:
            code = asyncio.run(main)
        except asyncio.CancelledError:  # a second Ctrl-C
            raise typer.Exit(EXIT_INTERRUPTED) from None
    raise typer.Exit(code)
