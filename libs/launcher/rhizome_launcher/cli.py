"""The `rhizome` command."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from rhizome_launcher.bench.engine_commands import bench_engine, eval_perplexity, eval_skills
from rhizome_launcher.bench.errors import explained
from rhizome_launcher.bench.serve_command import bench_serve
from rhizome_launcher.keys import keys_app
from rhizome_launcher.serve import EXIT_INTERRUPTED, run_until_interrupted
from rhizome_launcher.simulate.command import simulate
from rhizome_launcher.stack import StackError, StackSettings

app = typer.Typer(
    help="Serve large language models behind the OpenAI API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench_app = typer.Typer(help="Measure how fast a server or an engine is.", no_args_is_help=True)
eval_app = typer.Typer(help="Measure how good a model's answers are.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
app.add_typer(eval_app, name="eval")
app.add_typer(keys_app, name="keys")
bench_app.command("serve")(explained(bench_serve))
bench_app.command("engine")(explained(bench_engine))
eval_app.command("perplexity")(explained(eval_perplexity))
eval_app.command("skills")(explained(eval_skills))
app.command()(simulate)

ModelOption = Annotated[
    Path,
    typer.Option("--model", "-m", help="Checkpoint: config.json, tokenizer.json, *.safetensors."),
]
HostOption = Annotated[str, typer.Option(help="Address that the gateway listens on.")]
PortOption = Annotated[int, typer.Option(help="Port of the gateway.", min=1, max=65535)]
EnginesOption = Annotated[int, typer.Option(help="Engines; from two on a proxy balances them.", min=1)]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
QuantizationOption = Annotated[str, typer.Option(help="none, int8 or int4: round weights while loading.")]
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


@app.command()
def serve(
    model: ModelOption,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    engines: EnginesOption = 1,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = "none",
    kv_memory: KVMemoryOption = "",
    served_model_name: NameOption = "",
    direct: DirectOption = True,
    keys_file: KeysFileOption = None,
    allow_open: AllowOpenOption = False,
    workers: WorkersOption = 1,
    engine_arguments: EngineArguments = None,
) -> None:
    """Run a gateway and one or more engines on a checkpoint, until Ctrl-C."""
    arguments = ["--device", device, "--dtype", dtype, "--quantization", quantization]
    if kv_memory:
        arguments += ["--kv-memory", kv_memory]
    if served_model_name:
        arguments += ["--served-model-name", served_model_name]
    arguments += engine_arguments or []
    settings = StackSettings(
        model=model,
        engines=engines,
        host=host,
        port=port,
        direct=direct,
        engine_arguments=tuple(arguments),
        gateway_arguments=_gateway_arguments(keys_file, allow_open, workers),
    )
    _run(run_until_interrupted(settings))


@app.command()
def demo(
    model: Annotated[Path, typer.Option(help="Checkpoint directory.")] = Path("models/demo"),
    port: PortOption = 8000,
    question: Annotated[str, typer.Option(help="What to ask.")] = "Who are you, please?",
    stay: Annotated[bool, typer.Option(help="Stay up after the answer.")] = True,
) -> None:
    """Start two engines, a proxy and a gateway, ask one question, and stay up until Ctrl-C."""
    from rhizome_launcher.demo import run_demo

    _run(run_demo(model, port, question, stay_up=stay))


@app.command()
def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Report device, dtype, attention back end, memory, ports and what is missing."""
    from rhizome_launcher.doctor import examine, print_report

    report = examine()
    print_report(report, as_json=json_output)
    raise typer.Exit(1 if report.missing else 0)


def _gateway_arguments(keys_file: Path | None, allow_open: bool, workers: int) -> tuple[str, ...]:
    arguments = ["--workers", str(workers)]
    if keys_file is not None:
        arguments += ["--keys-file", str(keys_file)]
    if allow_open:
        arguments.append("--allow-open")
    return tuple(arguments)


def _run(main: object) -> None:
    """Run a coroutine to its exit code, and show a person what went wrong without a traceback."""
    assert asyncio.iscoroutine(main)
    # The services talk over loopback, which a proxy of the environment could not reach.
    os.environ.setdefault("no_grpc_proxy", "127.0.0.1")
    try:
        code = asyncio.run(main)
    except StackError as error:
        text = f"[red]error:[/red] {escape(str(error))}"
        Console(stderr=True).print(text, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except asyncio.CancelledError:  # a second Ctrl-C
        raise typer.Exit(EXIT_INTERRUPTED) from None
    raise typer.Exit(code)
