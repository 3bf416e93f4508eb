"""`rhizome up`, `down`, `status`, `restart` and `logs`, as a person types them."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from rhizome_launcher.background import logs as log_reading
from rhizome_launcher.background.control import ControlError, send_order
from rhizome_launcher.background.down import take_down
from rhizome_launcher.background.state_dir import DEFAULT_STATE_DIR, StateDir
from rhizome_launcher.background.status import EXIT_NOT_RUNNING, TABLE_WIDTH, look, status_table
from rhizome_launcher.background.up import DEFAULT_DRAIN_S, KEPT_LOGS, MAX_LOG_BYTES, bring_up
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
    NameOption,
    PortOption,
    QuantizationOption,
    WorkersOption,
    engine_arguments_of,
    explain,
    gateway_arguments_of,
    run_to_exit,
)
from rhizome_launcher.plan import StackError, StackSettings
from rhizome_launcher.stack_file import read_stack_file

_RESTART_SILENCE_S = 3600.0
_WATCH_EVERY_S = 1.0

StateDirOption = Annotated[
    Path,
    typer.Option("--state-dir", envvar="RHIZOME_STATE_DIR", help="Folder that the stack is known by."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def up(
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="Checkpoint: config.json, tokenizer.json, *.safetensors."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="Instead of options, a TOML file."),
    ] = None,
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
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    wait: Annotated[bool, typer.Option(help="Wait until everything serves.")] = True,
    timeout: Annotated[float, typer.Option(help="Seconds until everything must serve.", min=1)] = 600.0,
    drain: Annotated[
        int, typer.Option(help="Seconds that open answers get when services stop.", min=0)
    ] = DEFAULT_DRAIN_S,
    max_log_mib: Annotated[
        float, typer.Option(help="A log that is larger is moved aside.", min=0.001)
    ] = MAX_LOG_BYTES / (1 << 20),
    kept_logs: Annotated[int, typer.Option(help="Older logs kept of each service.", min=1)] = KEPT_LOGS,
    engine_arguments: EngineArguments = None,
) -> None:
    """Start a stack in the background, and look after it until `rhizome down`."""
    with explain():
        if (model is None) == (file is None):
            raise StackError("give --model or --file.")
        settings = StackSettings(
            model=Path() if model is None else model.absolute(),
            engines=engines,
            host=host,
            port=port,
            direct=direct,
            engine_arguments=() if file else engine_arguments_of(
                device, dtype, quantization, kv_memory, served_model_name, engine_arguments
            ),
            gateway_arguments=gateway_arguments_of(
                None if keys_file is None else keys_file.absolute(), allow_open, workers
            ),
            ready_timeout_s=timeout,
            drain_timeout_s=drain,
            keep_cores=True,
        )  # fmt: skip
        if file is not None:
            settings = read_stack_file(file, settings)
    run_to_exit(
        bring_up(
            StateDir(state_dir),
            settings,
            wait=wait,
            max_log_bytes=int(max_log_mib * (1 << 20)),
            kept_logs=kept_logs,
        )
    )


def down(
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds that each layer gets before it is killed; default: --drain of up, and 5."),
    ] = None,
) -> None:
    """Stop the stack in the order in which requests arrive, so that nobody loses an answer."""
    folder = StateDir(state_dir)
    with explain():
        started = time.monotonic()
        if take_down(folder, timeout):
            print(f"stopped after {time.monotonic() - started:.1f} s; the logs stay in {folder.log_dir}/")
        else:
            print(f"nothing runs in {folder.path}")


def status(
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    json_output: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again every second, until Ctrl-C.")] = False,
) -> None:
    """Show every service. Exit code 0: all serve, 1: some do not, 3: nothing runs."""
    folder = StateDir(state_dir)
    _reach_loopback()
    with explain():
        seen = asyncio.run(look(folder))
        if watch and not json_output:
            with Live(status_table(seen), auto_refresh=False) as live:
                try:
                    while True:
                        time.sleep(_WATCH_EVERY_S)
                        seen = asyncio.run(look(folder))
                        live.update(status_table(seen), refresh=True)
                except KeyboardInterrupt:
                    raise typer.Exit(seen.exit_code) from None
        if json_output:
            print(json.dumps(seen.as_dict()))
        elif seen.exit_code == EXIT_NOT_RUNNING:
            print(f"nothing runs in {folder.path}")
        else:
            # A narrow terminal breaks the lines; that is better than half of a table.
            Console(width=max(Console().width, TABLE_WIDTH)).print(status_table(seen))
    raise typer.Exit(seen.exit_code)


def restart(
    services: Annotated[list[str], typer.Argument(help="Names, or engines, gateways, proxies, all.")],
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds that each service gets before it is killed.")
    ] = None,
) -> None:
    """Restart services one after the other; the next one's turn is when everything serves again."""
    folder = StateDir(state_dir)
    order = {"command": "restart", "services": services, "timeout_s": timeout}
    with explain():
        if not folder.is_supervised():
            raise StackError(f"no stack is up in {folder.path}.")
        try:
            send_order(folder.control, order, print, _RESTART_SILENCE_S)
        except ControlError as error:
            raise StackError(str(error)) from None


def logs(
    service: Annotated[str, typer.Argument(help="Its name; all services where absent.")] = "",
    state_dir: StateDirOption = DEFAULT_STATE_DIR,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they grow, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many at first.", min=0)] = 100,
) -> None:
    """Print what the services wrote, in the order of time."""
    folder, console = StateDir(state_dir), Console(soft_wrap=True)

    def show(name: str, line: str) -> None:
        console.print(f"[dim]{escape(name):>9} |[/dim] {escape(line)}", highlight=False)

    with explain():
        names = log_reading.log_names(folder, service)
        readers = log_reading.readers_at_end(folder, names)
        for name, line in log_reading.last_lines(folder, names, lines):
            show(name, line)
        if follow:
            try:
                for name, line in log_reading.follow(folder, service, readers):
                    show(name, line)
            except KeyboardInterrupt:
                return


def add_commands(app: typer.Typer) -> None:
    """Make them commands of `rhizome`."""
    for command in (up, down, status, restart, logs):
        app.command()(command)


def _reach_loopback() -> None:
    """The services talk over loopback, which an HTTP proxy of the environment could not reach."""
    os.environ.setdefault("no_grpc_proxy", "127.0.0.1")
