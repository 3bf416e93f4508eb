"""What becomes known when a step was read: how long it took, and who else wants to know."""

from __future__ import annotations

import math
from collections.abc import Callable

from rhizome_engine.scheduler.load import LoadMeter
from rhizome_engine.scheduler.scheduler import Scheduler
from rhizome_engine.scheduler.step_plan import StepPlan

StepListener = Callable[[StepPlan, float, float], None]
"""Told a step that was read, when it began and when it was read, on the core's clock."""


class StepWatch:
    """Counts and times the steps of an engine core.

    Args:
        scheduler: learns from steps what a tenant costs the others.
        meter: counts them.
        clock: monotonic seconds.
        overlap: whether a step is launched before the one before was read.

    Attributes:
        listener: told every step; nobody by default.
    """

    def __init__(
        self, scheduler: Scheduler, meter: LoadMeter, clock: Callable[[], float], *, overlap: bool
    ) -> None:
        self.listener: StepListener | None = None
        self._scheduler = scheduler
        self._meter = meter
        self._clock = clock
        self._overlap = overlap
        self._last_read = -math.inf

    def read(self, plan: StepPlan) -> None:
        """Note a step whose tokens were just read."""
        self._meter.totals.steps += 1
        began, now = max(plan.launched, self._last_read), self._clock()
        # With overlap, only a step that was launched while another one ran has taken no host time.
        if not self._overlap or plan.launched <= self._last_read:
            tokens = sum(chunk.num_tokens for chunk in plan.chunks)
            self._scheduler.isolation.note(plan.turn, tokens, now - began)
        self._last_read = now
        if self.listener is not None:
            self.listener(plan, began, now)
