"""Histograms that take many values at once, and quantiles of values that are only known by bucket."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import Histogram

FIRST_TOKEN_S = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 30.0,
)  # fmt: skip
"""Those of OpenTelemetry's `gen_ai.server.time_to_first_token`, and some between and beyond them."""

INTER_TOKEN_S = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15,
    0.2, 0.3, 0.5, 1.0, 2.5,
)  # fmt: skip
"""Fine where streams are: 10 to 500 tokens per second."""

GENERATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 300.0)
"""Those of OpenTelemetry's `gen_ai.server.request.duration`, and one for answers of minutes."""

HTTP_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Those of OpenTelemetry's `http.server.request.duration`."""


class MergingHistogram(Histogram):
    """A histogram that also takes values that were sorted into its buckets elsewhere."""

    def merge(self, counts: Sequence[int], total: float) -> None:
        """Add values.

        Args:
            counts: values in each bucket, not cumulative; one more than there are bounds.
            total: sum of the values.
        """
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)


def quantile(share: float, upper_bounds: Sequence[float], counts: Sequence[float]) -> float | None:
    """Where so many of the values are not larger, as a straight line through its bucket has it.

    Args:
        share: between 0 and 1.
        upper_bounds: largest value of each bucket but the last, increasing, above 0.
        counts: values in each bucket, not cumulative; one more than there are bounds.

    Returns:
        None without values; the largest bound where the value lies beyond it.
    """
    rank = share * sum(counts)
    if not rank:
        return None
    lower = 0.0
    for upper, count in zip(upper_bounds, counts, strict=False):
        if count and rank <= count:
            return lower + (upper - lower) * rank / count
        rank -= count
        lower = upper
    return lower
