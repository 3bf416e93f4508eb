"""Drives an engine on the event loop: one timer per step, however many requests it has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from rhizome_launcher.simulate.engine import Engine
from rhizome_launcher.simulate.request import SimulatedRequest

_MOST_LATE_S: Final = 0.1
"""Who is later than this was stopped or starved, and goes on where it was instead of catching up."""


class Heart:
    """Maps real time to simulated time. Must be made inside the running loop.

    The loop's own heap of timers holds the next event of each engine. Steps that are due at the same time are
    computed in one go and each stream is written once for all of them.

    Args:
        engine: what to drive.
        speed: simulated seconds per second.
        after_beat: called after each wake-up.
    """

    def __init__(
        self, engine: Engine, speed: float = 1.0, after_beat: Callable[[], None] | None = None
    ) -> None:
        self._engine = engine
        self._speed = speed
        self._after_beat = after_beat
        self._loop = asyncio.get_running_loop()
        self._zero = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def now(self) -> float:
        """Simulated seconds since the start."""
        return (self._loop.time() - self._zero) * self._speed

    def submit(self, request: SimulatedRequest) -> None:
        """Queue a request; see `Engine.submit`."""
        self._engine.submit(request, self.now())
        self._arm()

    def stop(self) -> None:
        """Time stands still."""
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._timer is None and self._engine.due is not None:
            self._timer = self._loop.call_at(self._zero + self._engine.due / self._speed, self._beat)

    def _beat(self) -> None:
        self._timer = None
        engine = self._engine
        if engine.due is not None:
            late_s = self._loop.time() - self._zero - engine.due / self._speed
            if late_s > _MOST_LATE_S:
                self._zero += late_s
        engine.advance(self.now())
        touched, engine.touched = engine.touched, []
        for request in touched:
            request.sink.flush()
        if self._after_beat is not None:
            self._after_beat()
        self._arm()
