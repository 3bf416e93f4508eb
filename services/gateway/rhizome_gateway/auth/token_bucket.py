"""Token buckets: so much a minute, in a burst or spread out."""

from __future__ import annotations

_MINUTE_S = 60.0
_ROUNDING = 1e-6
"""What floating point may lose; who waits as long as they were told finds what they were promised."""


class TokenBucket:
    """How much of a limit per minute is left.

    It begins full with one minute's worth, fills evenly, and never holds more. What is charged afterwards may
    take it below zero; that debt fills up first, so that over any long time the limit holds exactly.

    Args:
        level: what is left.
        at: when that was, in seconds of a clock that never goes back. A bucket of long ago is full.

    Attributes:
        level: see above.
        at: see above.
    """

    __slots__ = ("at", "level")

    def __init__(self, level: float, at: float) -> None:
        self.level = level
        self.at = at

    def fill(self, per_minute: int, now: float) -> None:
        """Add what time has brought; `per_minute` may have changed since the last time."""
        if now > self.at:
            self.level += (now - self.at) * per_minute / _MINUTE_S
            self.at = now
        self.level = min(self.level, float(per_minute))

    def wait_s(self, amount: float, per_minute: int) -> float:
        """Seconds until `amount`, at most `per_minute`, is there; 0 when it is. Call `fill` first."""
        missing = amount - self.level
        return missing * _MINUTE_S / per_minute if missing > _ROUNDING else 0.0

    def reset_s(self, per_minute: int) -> float:
        """Seconds until it is full. Call `fill` first."""
        return self.wait_s(per_minute, per_minute)

    @property
    def remaining(self) -> int:
        """Whole units that are left; 0 in debt."""
        return max(0, int(self.level + _ROUNDING))
