"""Ended requests by what they took, as `GetLoad` reports them beside the totals.

Every request that was accepted passes here once, when it ends, with the same times that its last event tells;
so the sums are those of `RequestTotals`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from rhizome.engine.v1 import load_pb2
from rhizome_engine.scheduler.request import Request, Timings, Usage

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_TOKENS = (0, 16, 64, 256, 1024, 4096, 16384, 65536)


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


class RequestHistograms:
    """One histogram per phase; each counts the requests that reached it, whatever they ended with."""

    def __init__(self) -> None:
        self._queue = Histogram(_SECONDS)
        self._prefill = Histogram(_SECONDS)
        self._decode = Histogram(_SECONDS)
        self._first_token = Histogram(_SECONDS)
        self._cached_tokens = Histogram(_TOKENS)

    def observe(self, request: Request, usage: Usage, timings: Timings) -> None:
        """Count a request that ended."""
        self._queue.observe(timings.queue_s)
        if request.first_scheduled is None:
            return
        self._prefill.observe(timings.prefill_s)
        self._cached_tokens.observe(usage.cached_tokens)
        if request.first_token is not None:
            self._decode.observe(timings.decode_s)
            self._first_token.observe(timings.time_to_first_token_s)

    def message(self) -> load_pb2.RequestHistograms:
        """As the contract has it."""
        return load_pb2.RequestHistograms(
            queue_seconds=self._queue.message(),
            prefill_seconds=self._prefill.message(),
            decode_seconds=self._decode.message(),
            time_to_first_token_seconds=self._first_token.message(),
            cached_tokens=self._cached_tokens.message(),
        )
