"""`rhizome down`: stop a background stack, with its supervisor or without one."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import psutil

from rhizome_launcher.background.control import ControlError, send_order
from rhizome_launcher.background.state_dir import SavedPlan, StateDir, stop_timeout_s
from rhizome_launcher.plan import LAYERS, Kind, StackError
from rhizome_launcher.service_process import ServiceProcess
from rhizome_launcher.stack import marked, remove_traces, stop_in_order

_SILENCE_S: Final = 5.0
_MARGIN_S: Final = 15.0
_LOCK_PATIENCE_S: Final = 1.0


def take_down(folder: StateDir, timeout_s: float | None = None) -> bool:
    """Stop a stack, so that nothing of it is left but the logs; whether there was one.

    Args:
        folder: of the stack.
        timeout_s: what each layer gets to end before it is killed; as `up` was told, where absent.

    Raises:
        StackError: another command has the lock and does not let it go.
    """
    saved = folder.read_plan()
    if saved is None:
        return False
    if timeout_s is None:
        timeout_s = stop_timeout_s(saved)
    if folder.is_supervised():
        _tell_supervisor(folder, timeout_s)
        if folder.read_plan() is None:
            return True
    with folder.locked(_LOCK_PATIENCE_S) as mine:
        if not mine:
            raise StackError(f"another `rhizome up` or `down` is at work in {folder.path}; try again.")
        asyncio.run(_stop_left_behind(folder, saved, timeout_s))
        folder.forget()
    return True


def _tell_supervisor(folder: StateDir, timeout_s: float) -> None:
    """Have the supervisor stop everything; one that does not is killed."""
    supervisor = _supervisor(folder)
    deadline = time.monotonic() + len(LAYERS) * timeout_s + _MARGIN_S
    try:
        send_order(
            folder.control, {"command": "down", "timeout_s": timeout_s}, lambda _: None, silence_s=_SILENCE_S
        )
    except ControlError:
        deadline = time.monotonic() + _LOCK_PATIENCE_S  # it is on its way out, or frozen
    with folder.locked(max(0.0, deadline - time.monotonic())) as ended:
        if ended and folder.read_plan() is None:
            folder.forget()  # the lock file came back with the lock
        if ended or supervisor is None:
            return
    supervisor.kill()
    supervisor.wait(_MARGIN_S)


def _supervisor(folder: StateDir) -> psutil.Process | None:
    """The process that wrote the state, if it is a supervisor."""
    try:
        process = psutil.Process(folder.read_state().supervisor_pid or -1)
        return process if str(folder.path) in process.cmdline() else None
    except (psutil.Error, ValueError):
        return None


async def _stop_left_behind(folder: StateDir, saved: SavedPlan, timeout_s: float) -> None:
    """Stop services whose supervisor was killed, in the same order."""
    records = folder.read_state().services
    left: list[tuple[Kind, ServiceProcess]] = []
    for service in saved.stack.services:
        record = records.get(service.name)
        found = record.process() if record is not None else None
        if found is not None:
            process = ServiceProcess(
                service.name, service.module, list(service.arguments), log_path=folder.log(service.name)
            )
            process.adopt(found)
            left.append((service.kind, process))
    await stop_in_order(left, timeout_s)
    remove_traces(saved.stack)
    for process_left in marked(saved.stack.mark):
        process_left.wait(_MARGIN_S)
