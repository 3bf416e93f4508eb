"""How many refused requests may try another engine: retries must not multiply the load on a full fleet."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_RESERVE_S: Final = 10.0


class RetryBudget:
    """Tokens that requests bring and retries take.

    Args:
        share: retries per request.
        least_per_s: retries per second that are allowed whatever the number of requests; what ten seconds
            allow is kept for a bad moment.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        share: float = 0.2,
        least_per_s: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share = share
        self._least_per_s = least_per_s
        self._clock = clock
        self._most = max(1.0, _RESERVE_S * least_per_s)
        self._tokens = self._most
        self._refilled_at = clock()

    def request(self) -> None:
        """Note a request."""
        self._tokens = min(self._most, self._tokens + self._share)

    def take(self) -> bool:
        """Whether one retry more is allowed."""
        now = self._clock()
        self._tokens = min(self._most, self._tokens + (now - self._refilled_at) * self._least_per_s)
        self._refilled_at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
