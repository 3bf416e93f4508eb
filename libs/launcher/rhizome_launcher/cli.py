"""The `rhizome` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rhizome_launcher.background.commands import add_commands
from rhizome_launcher.bench.engine_commands import bench_engine, eval_perplexity, eval_skills
from rhizome_launcher.bench.errors import explained
from rhizome_launcher.bench.serve_command import bench_serve
from rhizome_launcher.keys import keys_app
from rhizome_launcher.options import (
    AllowOpenOption,
    DeviceOption,
    DirectOption,
    DtypeOption,
    EngineArguments,
    EnginesOption,
    HostOption,
    KeysFileOption,
    KVMemoryOption,
    ModelOption,
    NameOption,
    PortOption,
    QuantizationOption,
    WorkersOption,
    engine_arguments_of,
    gateway_arguments_of,
    run_to_exit,
)
from rhizome_launcher.plan import StackSettings
from rhizome_launcher.serve import run_until_interrupted
from rhizome_launcher.simulate.command import simulate

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
    settings = StackSettings(
        model=model,
        engines=engines,
        host=host,
        port=port,
        direct=direct,
        engine_arguments=engine_arguments_of(
            device, dtype, quantization, kv_memory, served_model_name, engine_arguments
        ),
        gateway_arguments=gateway_arguments_of(keys_file, allow_open, workers),
    )
    run_to_exit(run_until_interrupted(settings))


@app.command()
def demo(
    model: Annotated[Path, typer.Option(help="Checkpoint directory.")] = Path("models/demo"),
    port: PortOption = 8000,
    question: Annotated[str, typer.Option(help="What to ask.")] = "Who are you, please?",
    stay: Annotated[bool, typer.Option(help="Stay up after the answer.")] = True,
) -> None:
    """Start two engines, a proxy and a gateway, ask one question, and stay up until Ctrl-C."""
    from rhizome_launcher.demo import run_demo

    run_to_exit(run_demo(model, port, question, stay_up=stay))


add_commands(app)


@app.command()
def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Report device, dtype, attention back end, memory, ports and what is missing."""
    from rhizome_launcher.doctor import examine, print_report

    report = examine()
    print_report(report, as_json=json_output)
    raise typer.Exit(1 if report.missing else 0)
