"""How many requests without a first token a backend should have: fewer than make each other late.

A request is late by how much longer it takes to its first token than one of about the same prompt that found
no other without a first token. Where those that found some are over `_LATE` times as late on
average, they wait for each other, for prompts to be read or for slots, and their time grows with their
number: the limit becomes what would make them `_LATE`. Where they are not late and the limit is reached, it
grows. That is the gradient of latency over concurrency, as in Netflix's concurrency-limits, with another idea
of what is normal: not the fastest ever, as prompts differ a hundredfold, nor a long average, which follows an
overload that lasts, but those that were alone in these minutes. At a limit of one every request is, so a
wrong idea corrects itself. What was tried in vain is tried again later and later. Until there is evidence
nobody is held back.
"""

from __future__ import annotations

import math
from typing import Final

_LATE: Final = 1.5
_HARMLESS_S: Final = 0.02
_SAMPLES: Final = 8
_WINDOW_S: Final = 0.25
_SHRINK_AT_MOST: Final = 0.25
_NEW: Final = 0.2
_MOST_PATIENCE: Final = 32


class FirstTokenLimit:
    """The limit of one backend.

    Args:
        most: the limit while nothing is known.

    Attributes:
        limit: requests without a first token.
    """

    def __init__(self, most: int) -> None:
        self.limit = most
        self._most = most
        self._lone: dict[int, float] = {}  # by size of the prompt: logarithm of the seconds
        self._patience = 1  # windows at the limit, none of them late, until it grows
        self._calm = 0
        self._since = 0.0
        self._seen = self._crowd = self._peak = 0
        self._late = 0.0

    def answered(self, tokens: int, took_s: float, others: int, now: float) -> None:
        """A first token came.

        Args:
            tokens: of the prompt.
            took_s: since the request was sent.
            others: requests without a first token that it found there.
            now: seconds.
        """
        size, took = tokens.bit_length() // 2, math.log(max(took_s, 1e-6))
        normal = self._lone.get(size)
        if not others:
            self._lone[size] = took if normal is None else normal + _NEW * (took - normal)
        elif self._lone:
            if normal is None:  # the nearest size says something too
                normal = self._lone[min(self._lone, key=lambda known: (abs(known - size), -known))]
            self._crowd += 1
            self._late += took - math.log(math.exp(normal) + _HARMLESS_S)
        self._seen += 1
        self._peak = max(self._peak, others + 1)
        if self._seen >= _SAMPLES and now - self._since >= _WINDOW_S:
            self._decide()
            self._since, self._late = now, 0.0
            self._seen = self._crowd = self._peak = 0

    def _decide(self) -> None:
        judged = 2 * self._crowd >= self._seen
        late = math.exp(self._late / self._crowd) if judged else 1.0
        if late > _LATE:
            kept = max(_SHRINK_AT_MOST, _LATE / late)
            self.limit = max(1, int(kept * min(self.limit, self._peak)))
            self._patience = min(_MOST_PATIENCE, 2 * self._patience)
            self._calm = 0
            return
        if judged:
            self._patience = max(1, self._patience - 1)
        if self._peak >= self.limit:
            self._calm += 1
            if self._calm >= self._patience:
                self.limit = min(self._most, self.limit + max(1, self.limit // 4))
                self._calm = 0
