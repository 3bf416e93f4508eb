"""Passive health: a backend that fails again and again gets nothing for a while.

    closed ── failures in a row ──> ejected 1 s · 2^k ──> half open ── success ──> closed, slow start
                                       ^                     │
                                       └── it fails, k + 1 ──┘

What counts as a failure is decided by whoever calls: broken streams and refused connections do; cancels,
wrong requests and full queues never do.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_BASE_S: Final = 1.0
_CAP_S: Final = 60.0
_JITTER: Final = 0.1
_LEAST_WEIGHT: Final = 0.1


@dataclass(frozen=True, slots=True)
class OutlierRules:
    """When a backend is ejected.

    Attributes:
        failures: so many in a row.
        max_share: at most this share of all backends is ejected at a time, in [0, 1].
        slow_start_s: time in which a backend that came back reaches its full weight.
    """

    failures: int = 3
    max_share: float = 0.5
    slow_start_s: float = 10.0


class Outlier:
    """One backend's record.

    Args:
        rules: when it is ejected.
        may_eject: asked before it is ejected; `False` where too many others are.
        clock: monotonic seconds.

    Attributes:
        trial: a half-open backend has got its one request, which has not succeeded or failed yet.
        until: when its ejection ends, or ended if nothing has succeeded since; `None` where it is trusted.
        returned_at: when it came back; `None` once that is long ago.
    """

    def __init__(
        self,
        rules: OutlierRules,
        may_eject: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.trial = False
        self.until: float | None = None
        self._rules = rules
        self._may_eject = may_eject
        self._clock = clock
        self._failures = 0
        self._ejections = 0
        self._last_until = -_CAP_S
        self.returned_at: float | None = None

    @property
    def ejected(self) -> bool:
        """Whether it is out: its time is not over, or its trial is under way."""
        return self.until is not None and (self.trial or self._clock() < self.until)

    @property
    def weight(self) -> float:
        """What part of its share it should get, in (0, 1]: it grows while one that came back warms up."""
        if self.returned_at is None:
            return 1.0
        share = (self._clock() - self.returned_at) / max(self._rules.slow_start_s, 1e-9)
        if share >= 1.0:
            self.returned_at = None
        return min(1.0, max(_LEAST_WEIGHT, share))

    def begin(self) -> bool:
        """Note that a request goes there; whether it is the trial of a half-open backend."""
        if self.until is None or self.trial or self._clock() < self.until:
            return False
        self.trial = True
        return True

    def failed(self) -> None:
        """Note a failure."""
        self._failures += 1
        now = self._clock()
        if self.until is not None:
            if self.trial or now >= self.until:
                self._eject(now)
        elif self._failures >= self._rules.failures and self._may_eject():
            self._eject(now)

    def succeeded(self) -> None:
        """Note that a request got its first event."""
        self._failures = 0
        if self.until is not None and (self.trial or self._clock() >= self.until):
            self.trial = False
            self.until = None
            self.returned()

    def returned(self) -> None:
        """It was away and is back: begin the slow start."""
        self.returned_at = self._clock()

    def _eject(self, now: float) -> None:
        if now - self._last_until > _CAP_S:
            self._ejections = 0
        self.trial = False
        lasting_s = min(_CAP_S, _BASE_S * 2.0 ** min(self._ejections, 16))
        self.until = self._last_until = now + lasting_s * random.uniform(1.0, 1.0 + _JITTER)  # noqa: S311
        self._ejections += 1
