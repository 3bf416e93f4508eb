"""How long an idle engine waits for company before it computes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class StartDelay:
    """Holds the first step of an idle engine back, so that requests that come together are computed together.

    An engine at work waits for nobody: who comes joins the next step.

    Args:
        interval_s: how long; 0 never waits.
        clock: monotonic seconds.
    """

    def __init__(self, interval_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._until: float | None = None

    def left_ms(self, has_work: bool) -> int:
        """Milliseconds until the next step may begin, rounded up; 0 when it may begin now.

        Args:
            has_work: whether there is anything to compute; the wait begins when this turns true.
        """
        if not has_work or self._interval_s == 0.0:
            self._until = None
            return 0
        if self._until is None:
            self._until = self._clock() + self._interval_s
        return max(0, math.ceil((self._until - self._clock()) * 1e3))
