"""Rates and quantiles of the last moments, from counts that only grow."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import Metric

from rhizome_gateway.metrics.buckets import FIRST_TOKEN_S, INTER_TOKEN_S, quantile

RATE_S = 10.0
"""Requests and tokens per second are means over this time."""
WINDOW_S = 60.0
"""Quantiles are of this time."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The counts of one moment.

    Attributes:
        at: when, by `time.monotonic`.
        requests: generations that ended.
        tokens: tokens generated.
        first_token: times to the first token, by bucket of `FIRST_TOKEN_S`.
        inter_token: inter-token latencies, by bucket of `INTER_TOKEN_S`.
    """

    at: float
    requests: float
    tokens: float
    first_token: Sequence[float]
    inter_token: Sequence[float]

    @classmethod
    def of(cls, families: Iterable[Metric], at: float) -> Sample:
        """Add up the families of `GatewayMetrics.activity` over all labels."""
        named = {family.name: family for family in families}
        return cls(
            at,
            _sum(named, "gen_ai_server_request_duration_seconds", "_count"),
            _sum(named, "rhizome_gateway_generated_tokens", "_total"),
            _buckets(named, "gen_ai_server_time_to_first_token_seconds", FIRST_TOKEN_S),
            _buckets(named, "rhizome_gateway_inter_token_latency_seconds", INTER_TOKEN_S),
        )


class Activity:
    """Remembers the samples of the last minute."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()

    def add(self, sample: Sample) -> None:
        """Take a sample; they come in order. One that is just old enough stays, to compare with."""
        self._samples.append(sample)
        while len(self._samples) > 2 and sample.at - self._samples[1].at >= WINDOW_S:
            self._samples.popleft()

    def until(self, now: Sample, first_tokens: Sequence[float] | None = None) -> dict[str, Any]:
        """What happened up to a sample; null where nothing did, or where nobody looked before.

        Args:
            now: the sample.
            first_tokens: the times to the first token of the last minute, in seconds, where they are known
                one by one; else buckets have to do.
        """
        before = self._before(now, WINDOW_S)
        return {
            "requests_per_second": self._rate(now, lambda sample: sample.requests),
            "tokens_per_second": self._rate(now, lambda sample: sample.tokens),
            "time_to_first_token_ms": _quantiles(
                now.first_token, before.first_token if before else None, FIRST_TOKEN_S
            )
            if first_tokens is None
            else _exact_quantiles(first_tokens),
            "inter_token_latency_ms": _quantiles(
                now.inter_token, before.inter_token if before else None, INTER_TOKEN_S
            ),
        }

    def _before(self, now: Sample, seconds: float) -> Sample | None:
        """The latest sample that is so old, or the oldest."""
        older = [sample for sample in self._samples if now.at - sample.at >= seconds]
        return older[-1] if older else next(iter(self._samples), None)

    def _rate(self, now: Sample, count: Callable[[Sample], float]) -> float | None:
        before = self._before(now, RATE_S)
        if before is None or now.at <= before.at:
            return None
        return round((count(now) - count(before)) / (now.at - before.at), 2)


def _quantiles(
    now: Sequence[float], before: Sequence[float] | None, upper_bounds: Sequence[float]
) -> dict[str, float | None]:
    counts = list(now)
    if before is not None:
        counts = [count - known for count, known in zip(now, before, strict=True)]
    return _shown(int(sum(counts)), lambda share: quantile(share, upper_bounds, counts))


def _exact_quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """The same of values that are known: between the two that are nearest."""
    ordered = sorted(values)

    def found(share: float) -> float | None:
        if not ordered:
            return None
        place = share * (len(ordered) - 1)
        lower = ordered[int(place)]
        return lower + (ordered[math.ceil(place)] - lower) * (place % 1)

    return _shown(len(ordered), found)


def _shown(count: int, found: Callable[[float], float | None]) -> dict[str, float | None]:
    told: dict[str, float | None] = {"count": count}
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        seconds = found(share)
        told[name] = None if seconds is None else round(seconds * 1e3, 3)
    return told


def _sum(named: Mapping[str, Metric], name: str, suffix: str) -> float:
    family = named.get(name)
    samples = family.samples if family else ()
    return sum(sample.value for sample in samples if sample.name == name + suffix)


def _buckets(named: Mapping[str, Metric], name: str, upper_bounds: Sequence[float]) -> Sequence[float]:
    """Values in each bucket, not cumulative, over all labels."""
    cumulative = dict.fromkeys((*upper_bounds, math.inf), 0.0)
    family = named.get(name)
    for sample in family.samples if family else ():
        if sample.name.endswith("_bucket"):
            cumulative[float(sample.labels["le"])] += sample.value
    values = list(cumulative.values())
    return [upper - lower for upper, lower in zip(values, (0.0, *values), strict=False)]
