"""Values by size, as `GetLoad` reports them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from rhizome.engine.v1 import load_pb2

GAP_BOUNDS_S: Final = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15,
    0.2, 0.3, 0.5, 1.0, 2.5,
)  # fmt: skip
"""Between tokens; fine where streams are: 10 to 500 tokens per second."""


class Histogram:
    """Counts values by size.

    Args:
        upper_bounds: largest value of each bucket but the last, increasing.
    """

    def __init__(self, upper_bounds: Sequence[float]) -> None:
        self._upper_bounds = tuple(upper_bounds)
        self._counts = [0] * (len(self._upper_bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._upper_bounds, value)] += 1
        self._sum += value

    def message(self) -> load_pb2.Histogram:
        """As the contract has it."""
        return load_pb2.Histogram(upper_bounds=self._upper_bounds, counts=self._counts, sum=self._sum)


class TokenGaps(Histogram):
    """Seconds between the tokens of requests.

    The rows of a step mostly waited equally long, so the bucket is looked up once for all of them.
    """

    def __init__(self) -> None:
        super().__init__(GAP_BOUNDS_S)
        self._gap_s = -1.0
        self._bucket = 0

    def observe(self, value: float) -> None:
        """Count one gap."""
        if value != self._gap_s:
            self._gap_s = value
            self._bucket = bisect_left(self._upper_bounds, value)
        self._counts[self._bucket] += 1
        self._sum += value
