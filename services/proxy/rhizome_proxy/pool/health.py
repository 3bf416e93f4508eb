"""Active checks: each engine is asked for health and load a few times a second, on its own clock."""

from __future__ import annotations

import asyncio
import logging
import random
import time

import grpc

from rhizome_proxy.pool.backend import Backend, State
from rhizome_transport.errors import EngineError

TIMEOUTS_UNTIL_DOWN = 3
"""A slow engine is not a dead one: only so many unanswered checks in a row make it one."""

_log = logging.getLogger(__name__)


class HealthPoller:
    """Watches backends.

    A refused or broken connection marks a backend down at once; an unanswered check only voids its load, so
    that the proxy's own count decides.

    Args:
        interval_s: least time between two checks, in seconds; the time is drawn from [1, 2) times as much, so
            that several proxies do not ask in step.
        timeout_s: how long a check may take.
        stall_s: an engine that answered no check and sent no event for so long is given up: what is open
            there goes elsewhere.
    """

    def __init__(self, interval_s: float, timeout_s: float, stall_s: float = 10.0) -> None:
        self._stall_s = stall_s
        self._interval_s = interval_s
        self._timeout_s = timeout_s

    async def watch(self, backend: Backend) -> None:
        """Check `backend` until cancelled, and at once when a request finds it broken."""
        suspected = asyncio.Event()
        backend.on_suspect = suspected.set
        timeouts = 0
        while True:
            timeouts = await self._check(backend, timeouts)
            try:
                async with asyncio.timeout(self._interval_s * random.uniform(1.0, 2.0)):  # noqa: S311
                    await suspected.wait()
            except TimeoutError:
                continue
            suspected.clear()

    async def _check(self, backend: Backend, timeouts: int) -> int:
        """Check once; returns how many checks in a row were not answered."""
        own, began = backend.in_flight, time.monotonic()
        try:
            probe = await backend.server.probe(self._timeout_s)
        except EngineError as error:
            if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                if backend.last_heard() > began:  # too busy to answer, but not to work
                    timeouts = -1
                if timeouts + 1 < TIMEOUTS_UNTIL_DOWN:
                    backend.observe_load(None)
                    return timeouts + 1
                if time.monotonic() - backend.last_heard() >= self._stall_s:
                    backend.cut()
            self._down(backend, f"{error.code.name}: {error.message}")
            return timeouts + 1
        except Exception as error:
            _log.exception("the check of backend %s failed", backend.name)
            self._down(backend, f"the check failed: {error}")
            return timeouts
        backend.last_seen, backend.heard_at = time.time(), time.monotonic()
        if not probe.serving:
            self._down(backend, probe.reason)
            return 0
        # Requests may have started or ended while the report travelled; it may contain any of them.
        backend.observe_load(probe.load, max(own, backend.in_flight))
        if backend.state in (State.UNKNOWN, State.DOWN):
            _log.info("backend %s is ready", backend.name)
        backend.mark_ready(probe.models)
        return 0

    def _down(self, backend: Backend, reason: str) -> None:
        if backend.healthy or not backend.checked:
            _log.warning("backend %s is down: %s", backend.name, reason)
        backend.mark_down(reason)
