"""`python -m rhizome_launcher.background.supervisor FOLDER LOCK`: looks after a stack in the background.

It keeps every service running, cuts logs that grew too large, and takes orders at the control socket. Killed,
it leaves the services running; the next `rhizome up` starts another supervisor, which adopts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rhizome_launcher.background.control import ControlError, Note, serve_control
from rhizome_launcher.background.keeper import Keeper
from rhizome_launcher.background.rolling import restart_services
from rhizome_launcher.background.state_dir import SUPERVISOR, SavedPlan, State, StateDir, stop_timeout_s
from rhizome_launcher.log_file import rotate
from rhizome_launcher.service_process import ServiceProcess
from rhizome_launcher.stack import remove_traces, stop_in_order
from rhizome_telemetry.logs import configure_logging

_ROTATE_EVERY_S: Final = 1.0
_log = logging.getLogger(__name__)


class Supervisor:
    """Looks after the services of a plan.

    Args:
        folder: where the plan is and the state goes; its lock is held.
        plan: what runs.
    """

    def __init__(self, folder: StateDir, plan: SavedPlan) -> None:
        self._folder = folder
        self._plan = plan
        self._stop_asked = asyncio.Event()
        self._stop_timeout_s = stop_timeout_s(plan)
        self._restarting = asyncio.Lock()
        self._orders: set[asyncio.Task[Any]] = set()
        self._main: asyncio.Task[Any] | None = None
        self._keepers = {
            service.name: Keeper(
                service,
                ServiceProcess(
                    service.name,
                    service.module,
                    list(service.arguments),
                    log_path=folder.log(service.name),
                    environment=service.environment,
                    outlives=True,
                ),
                self._write_state,
            )
            for service in plan.stack.services
        }

    async def run(self) -> None:
        """Look after everything until somebody asks for the end, and then stop it."""
        loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        before = self._folder.read_state()
        for name, keeper in self._keepers.items():
            keeper.start(before.services.get(name))
        self._write_state()
        server = await serve_control(self._folder.control, self._order)
        rotating = asyncio.create_task(self._rotate())
        try:
            await self._stop_asked.wait()
            for task in (rotating, *self._orders):
                task.cancel()
            _log.info("stopping; each layer has %.0f s", self._stop_timeout_s)
            members = [(keeper.plan.kind, keeper) for keeper in self._keepers.values()]
            await stop_in_order(members, self._stop_timeout_s)
        finally:
            server.close()
            remove_traces(self._plan.stack)
            self._folder.forget()
            _log.info("stopped")

    def _stop(self, timeout_s: float | None = None) -> None:
        """Begin to stop; asked again, or with no time at all, kill what is left."""
        if timeout_s is not None:
            self._stop_timeout_s = timeout_s
        if self._stop_asked.is_set() and not timeout_s and self._main is not None:
            self._main.cancel()
        self._stop_asked.set()

    async def _order(self, asked: dict[str, Any], note: Note) -> None:
        timeout_s = asked.get("timeout_s")
        if timeout_s is not None and not isinstance(timeout_s, int | float):
            raise ControlError("timeout_s is a number of seconds")
        match asked.get("command"):
            case "down":
                self._stop(timeout_s)
            case "restart":
                names = [str(name) for name in asked.get("services", [])]
                await self._restart(names, self._stop_timeout_s if timeout_s is None else timeout_s, note)
            case other:
                raise ControlError(f"there is no command {other!r}")

    async def _restart(self, names: Sequence[str], timeout_s: float, note: Note) -> None:
        if self._restarting.locked():
            raise ControlError("another restart is at work")
        task = asyncio.current_task()
        assert task is not None
        self._orders.add(task)
        try:
            async with self._restarting:
                await restart_services(self._keepers, names, timeout_s, self._plan.ready_timeout_s, note)
        except asyncio.CancelledError:
            raise ControlError("the stack is being stopped") from None
        finally:
            self._orders.discard(task)

    async def _rotate(self) -> None:
        names = [*self._keepers, SUPERVISOR]
        while True:
            for name in names:
                with contextlib.suppress(OSError):  # a full disk: it is tried again
                    plan = self._plan
                    await asyncio.to_thread(
                        rotate, self._folder.log(name), plan.max_log_bytes, plan.kept_logs
                    )
            await asyncio.sleep(_ROTATE_EVERY_S)

    def _write_state(self) -> None:
        records = {name: keeper.record for name, keeper in self._keepers.items()}
        try:
            self._folder.write_state(State(os.getpid(), records))
        except OSError as error:  # a full disk must not end the stack
            _log.error("the state cannot be written: %s", error)


def main(arguments: Sequence[str]) -> int:
    """Run until the stack is stopped; the lock's descriptor stays open until the process ends."""
    folder = StateDir(Path(arguments[0]))
    os.set_inheritable(int(arguments[1]), False)
    configure_logging("rhizome-supervisor")
    plan = folder.read_plan()
    if plan is None:
        _log.error("there is no plan in %s", folder.path)
        return 1

    async def supervise() -> None:
        await Supervisor(folder, plan).run()

    try:
        asyncio.run(supervise())
    except asyncio.CancelledError:  # somebody had no patience
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
