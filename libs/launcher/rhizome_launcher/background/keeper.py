"""Keeps one service running: starts it again when it ends, later and later while it keeps ending."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import psutil

from rhizome_launcher.background.state_dir import ServiceRecord
from rhizome_launcher.plan import ServicePlan
from rhizome_launcher.service_process import EXIT_UNKNOWN, ServiceProcess
from rhizome_transport.process_start import process_start

EXIT_CANNOT_SERVE: Final = 2
"""A service that ends with this would end so again: its settings or its model are wrong."""
FIRST_BACK_OFF_S: Final = 0.5
LONGEST_BACK_OFF_S: Final = 30.0
STEADY_S: Final = 60.0
"""After so long the next start comes soon again."""

_log = logging.getLogger(__name__)


class Keeper:
    """One service under supervision.

    Args:
        plan: what it is.
        process: not started yet.
        on_change: called whenever `record` is another one.

    Attributes:
        record: what to tell about it.
    """

    def __init__(self, plan: ServicePlan, process: ServiceProcess, on_change: Callable[[], None]) -> None:
        self.plan = plan
        self.record = ServiceRecord()
        self._process = process
        self._on_change = on_change
        self._keeping: asyncio.Task[None] | None = None

    def start(self, before: ServiceRecord | None = None) -> None:
        """Begin; where the process of an earlier supervisor runs still, with that one."""
        adopted = before.process() if before is not None else None
        if before is not None and adopted is not None:
            self.record = replace(before, state="running", next_start=0.0)
            self._process.adopt(adopted)
            _log.info("%s: adopted process %d", self.plan.name, adopted.pid)
        self._keeping = asyncio.create_task(self._keep(running=adopted is not None))

    async def stop(self, timeout_s: float) -> None:
        """End it for good; SIGKILL follows after `timeout_s`."""
        await self._let_go()
        self._change(state="stopping")
        await self._process.stop(timeout_s)
        self._change(state="stopped", pid=0, last_exit_code=self._process.exit_code)

    def kill(self) -> None:
        """End the process at once; to be called after `stop`, or when that was cancelled."""
        self._process.kill()

    async def restart(self, timeout_s: float) -> None:
        """Stop it and start it again, however often it has ended before."""
        await self.stop(timeout_s)
        self._keeping = asyncio.create_task(self._keep(running=False))

    async def _let_go(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping

    async def _keep(self, *, running: bool) -> None:
        back_off_s = FIRST_BACK_OFF_S
        while True:
            started = time.monotonic()
            if not running:
                await self._start_process()
            running = False
            code = await self._process.wait()
            steady = time.monotonic() - started > STEADY_S
            back_off_s = FIRST_BACK_OFF_S if steady else back_off_s
            shown = "unknown" if code == EXIT_UNKNOWN else code
            if code == EXIT_CANNOT_SERVE:
                _log.error("%s cannot serve (exit code %s); it stays down", self.plan.name, shown)
                self._change(state="failed", pid=0, last_exit_code=code)
                return
            _log.error("%s ended with code %s; it starts again in %.1f s", self.plan.name, shown, back_off_s)
            self._change(state="waiting", pid=0, last_exit_code=code, next_start=time.time() + back_off_s)
            await asyncio.sleep(back_off_s)
            self._change(restarts=self.record.restarts + 1)
            back_off_s = min(2 * back_off_s, LONGEST_BACK_OFF_S)

    async def _start_process(self) -> None:
        self._change(state="starting", next_start=0.0)
        await self._process.start()
        try:
            started = process_start(self._process.pid)
        except psutil.NoSuchProcess:  # it is gone already, and buried
            started = 0.0
        _log.info("%s: started process %d", self.plan.name, self._process.pid)
        self._change(state="running", pid=self._process.pid, started=started)

    def _change(self, **changes: object) -> None:
        self.record = replace(self.record, **changes)  # type: ignore[arg-type]
        self._on_change()
