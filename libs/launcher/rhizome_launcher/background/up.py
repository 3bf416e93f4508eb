"""`rhizome up`: make a plan, start the supervisor, wait until everything serves."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from typing import Final

from rich.console import Console
from rich.markup import escape

from rhizome_launcher.background.down import take_down
from rhizome_launcher.background.state_dir import SUPERVISOR, SavedPlan, State, StateDir, describe
from rhizome_launcher.log_file import tail
from rhizome_launcher.plan import StackError, StackPlan, StackSettings, make_plan
from rhizome_launcher.readiness import all_serving
from rhizome_launcher.serve import EXIT_INTERRUPTED, StoppedEarlyError, interrupts, unless_interrupted
from rhizome_launcher.stack import remove_traces

DEFAULT_DRAIN_S: Final = 30
MAX_LOG_BYTES: Final = 32 << 20
KEPT_LOGS: Final = 3
_LOCK_PATIENCE_S: Final = 1.0
_OTHERS_PATIENCE_S: Final = 15.0
_HOPELESS_RESTARTS: Final = 3
_POLL_S: Final = 0.2


async def bring_up(
    folder: StateDir,
    settings: StackSettings,
    *,
    wait: bool = True,
    max_log_bytes: int = MAX_LOG_BYTES,
    kept_logs: int = KEPT_LOGS,
) -> int:
    """Start a stack in the background; the exit code.

    Asked for what runs already, it only waits until that serves.

    Raises:
        StackError: it cannot start, or the folder belongs to another stack; what was started is gone again.
    """
    console = Console()
    folder.create()
    saved, found = await asyncio.to_thread(_ensure_supervisor, folder, settings, max_log_bytes, kept_logs)
    plan = saved.stack
    if found:
        console.print(f"{found} {escape(str(folder.path))}", highlight=False)
    if not wait:
        _print_addresses(console, plan, folder)
        return 0
    started = time.monotonic()
    console.print(f"starting {', '.join(escape(one.name) for one in plan.services)} …", highlight=False)
    async with interrupts() as interrupted:
        try:
            await unless_interrupted(_until_ready(folder, saved), interrupted)
        except (StoppedEarlyError, StackError) as error:
            if not found:
                await asyncio.to_thread(take_down, folder, 0.0)
            if isinstance(error, StackError):
                raise
            return EXIT_INTERRUPTED
    console.print(f"[green]ready[/green] after {time.monotonic() - started:.1f} s\n", highlight=False)
    _print_addresses(console, plan, folder)
    return 0


def _ensure_supervisor(
    folder: StateDir, settings: StackSettings, max_log_bytes: int, kept_logs: int
) -> tuple[SavedPlan, str]:
    """The plan that a supervisor works on, and what was found instead of nothing."""
    wanted = describe(settings)
    deadline = time.monotonic() + _OTHERS_PATIENCE_S
    while (lock := folder.try_lock(_LOCK_PATIENCE_S)) is None:
        running = folder.read_plan()
        if running is None:  # another `up` has not decided yet, or a `down` is about to end
            if time.monotonic() > deadline:
                raise StackError(f"another `rhizome up` or `down` is at work in {folder.path}; try again.")
            continue
        if running.wanted != wanted:
            raise StackError(
                f"another stack is up in {folder.path}; stop it with `rhizome down`, or choose another "
                "folder with --state-dir."
            )
        return running, "this stack is up already, in"
    try:
        saved = _left_behind(folder, wanted)
        found = "taking over from a supervisor that was killed, in" if saved is not None else ""
        if saved is None:
            folder.forget(but_lock=True)
            plan = make_plan(settings)
            saved = SavedPlan(
                plan, wanted, settings.drain_timeout_s, settings.ready_timeout_s, max_log_bytes, kept_logs
            )
            folder.write_state(State())
            folder.write_plan(saved)
        _start_supervisor(folder, lock)
        return saved, found
    except BaseException:
        if folder.read_plan() is None:
            folder.forget()
        raise
    finally:
        os.close(lock)  # the supervisor has a copy


def _left_behind(folder: StateDir, wanted: str) -> SavedPlan | None:
    """The plan of services that outlived their supervisor, for the next one to adopt them.

    Raises:
        StackError: they are of another stack.
    """
    saved = folder.read_plan()
    if saved is None:
        return None
    alive = [name for name, record in folder.read_state().services.items() if record.process()]
    if not alive:
        remove_traces(saved.stack)
        return None
    if saved.wanted != wanted:
        raise StackError(
            f"services of another stack run in {folder.path} without a supervisor ({', '.join(alive)}); stop "
            "them with `rhizome down`, or choose another folder with --state-dir."
        )
    return saved


def _start_supervisor(folder: StateDir, lock: int) -> None:
    """Start it in a session of its own, so that it outlives the terminal; it inherits the lock."""
    with folder.log(SUPERVISOR).open("ab") as log:
        subprocess.Popen(
            [
                *(sys.executable, "-m", "rhizome_launcher.background.supervisor"),
                *(str(folder.path), str(lock)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock,),
        )


async def _until_ready(folder: StateDir, saved: SavedPlan) -> None:
    """Wait until every service serves.

    Raises:
        StackError: one cannot, or keeps ending, or the time is over.
    """
    deadline = time.monotonic() + saved.ready_timeout_s
    while True:
        state = folder.read_state()
        for name, record in state.services.items():
            if record.state == "failed" or record.restarts >= _HOPELESS_RESTARTS:
                raise StackError(
                    f"{name} ended with exit code {record.exit_text} before it was ready:\n"
                    f"{tail(folder.log(name))}"
                )
        supervised = await asyncio.to_thread(folder.is_supervised)
        if not supervised:
            raise StackError(f"the supervisor ended:\n{tail(folder.log(SUPERVISOR))}")
        running = all(record.state == "running" for record in state.services.values())
        if state.services and running and await all_serving(saved.stack.services):
            return
        if time.monotonic() > deadline:
            raise StackError(f"not ready after {saved.ready_timeout_s:.0f} s; logs in {folder.log_dir}")
        await asyncio.sleep(_POLL_S)


def _print_addresses(console: Console, plan: StackPlan, folder: StateDir) -> None:
    front = next(service for service in reversed(plan.services) if service.kind in ("router", "gateway"))
    console.print(f"[green]{front.kind:8}[/green] {plan.url}/v1   models {escape(', '.join(plan.models))}")
    for service in plan.services:
        if service is not front:
            console.print(f"{service.name:8} {service.address}", highlight=False)
    console.print(f"logs     {escape(str(folder.log_dir))}/", highlight=False, soft_wrap=True)
