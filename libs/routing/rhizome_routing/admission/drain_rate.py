"""How fast a queue drains."""

from __future__ import annotations

import math
from typing import Final

_MEMORY_S: Final = 20.0


class DrainRate:
    """Tokens per second that left a queue; what is older than 20 s fades.

    Args:
        now: seconds; there was nothing to leave before.
    """

    __slots__ = ("_at", "_since", "_tokens")

    def __init__(self, now: float) -> None:
        self._since = self._at = now
        self._tokens = 0.0

    def left(self, tokens: int, now: float) -> None:
        """So many tokens left."""
        self._tokens = self._faded(now) + tokens
        self._at = now

    def per_s(self, now: float) -> float:
        """The rate; 0 while nothing left."""
        seen_s = _MEMORY_S * -math.expm1((self._since - now) / _MEMORY_S)
        return self._faded(now) / seen_s if seen_s > 0 else 0.0

    def _faded(self, now: float) -> float:
        return self._tokens * math.exp((self._at - now) / _MEMORY_S)
