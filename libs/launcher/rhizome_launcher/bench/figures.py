"""From records to figures: percentiles, rates, goodput."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rhizome_launcher.bench.records import RequestRecord
from rhizome_launcher.bench.slo import Slo

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
LATENCIES = ("ttft", "itl", "tpot", "e2e")


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean and percentiles of some times, in milliseconds.

    Attributes:
        count: how many times there were.
        mean: their arithmetic mean.
        percentiles: by name (`p50`), interpolated linearly between the two nearest times.
    """

    count: int
    mean: float
    percentiles: dict[str, float]

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Distribution | None:
        """Summarise; None where there is nothing to summarise."""
        times = sorted(1e3 * value for value in seconds)
        if not times:
            return None
        percentiles = {name: percentile(times, quantile) for name, quantile in QUANTILES.items()}
        return cls(len(times), math.fsum(times) / len(times), percentiles)


def percentile(ordered: Sequence[float], quantile: float) -> float:
    """The value below which a share `quantile` of the ascending values lies, interpolated linearly.

    Raises:
        ValueError: there are no values.
    """
    if not ordered:
        raise ValueError("no values, no percentile")
    place = quantile * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True, slots=True)
class Figures:
    """What the requests of one load level come to; see docs/benchmarking.md for the definitions.

    Attributes:
        requests: how many ended, well or not.
        failed: how many of them failed, by kind of error.
        example_errors: one message of each kind.
        unfinished: requests that an interrupt cut off; they count nowhere else.
        duration_s: from the first request to the last end.
        prompt_tokens, cached_tokens, output_tokens: of the successful requests.
        tokens_counted_by_server: whether the output tokens are the server's count, for all of them.
        latencies: by name (`ttft`, `itl`, `tpot`, `e2e`); None where no request had one.
        prefill_tok_s, decode_tok_s: of streams that all started together, as `bench engine` defines them;
            None otherwise.
        good: how many met the SLO; None without one.
        client_cpu_share: CPU time of this process over the duration; 1.0 is a whole core.
    """

    requests: int
    failed: dict[str, int]
    example_errors: dict[str, str]
    unfinished: int
    duration_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    tokens_counted_by_server: bool
    latencies: dict[str, Distribution | None]
    prefill_tok_s: float | None
    decode_tok_s: float | None
    good: int | None
    client_cpu_share: float

    @property
    def succeeded(self) -> int:
        """Requests whose answers came whole."""
        return self.requests - sum(self.failed.values())

    def per_second(self, count: float) -> float:
        """A count over the duration."""
        return count / self.duration_s if self.duration_s > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """The figures by name, the unit in the name."""
        report: dict[str, Any] = {
            "requests": self.requests,
            "succeeded": self.succeeded,
            "failed": sum(self.failed.values()),
            "errors": self.failed,
            "unfinished": self.unfinished,
            "duration_s": self.duration_s,
            "requests_s": self.per_second(self.succeeded),
            "output_tok_s": self.per_second(self.output_tokens),
            "total_tok_s": self.per_second(self.prompt_tokens + self.output_tokens),
            "prefill_tok_s": self.prefill_tok_s,
            "decode_tok_s": self.decode_tok_s,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "tokens_counted_by_server": self.tokens_counted_by_server,
            "goodput_requests_s": None if self.good is None else self.per_second(self.good),
            "good_share": None if self.good is None or not self.requests else self.good / self.requests,
            "client_cpu_share": self.client_cpu_share,
        }
        for name, distribution in self.latencies.items():
            for quantile in ("mean", *QUANTILES):
                value = None
                if distribution is not None:
                    value = distribution.mean if quantile == "mean" else distribution.percentiles[quantile]
                report[f"{name}_ms_{quantile}"] = value
        return report


def summarise(
    records: Sequence[RequestRecord],
    *,
    unfinished: int = 0,
    slo: Slo | None = None,
    waves: Sequence[Sequence[RequestRecord]] = (),
    client_cpu_s: float = 0.0,
) -> Figures:
    """Reduce the records of one load level.

    Args:
        records: of every request that ended.
        unfinished: how many did not.
        slo: what makes a request good.
        waves: the same records grouped by streams that started together, where they did.
        client_cpu_s: CPU time that this process took meanwhile.
    """
    good = [record for record in records if record.ok]
    start = min((record.started_s for record in records), default=0.0)
    duration = max((record.ended_s for record in records), default=0.0) - start
    prefill, decode = _wave_rates(waves)
    return Figures(
        requests=len(records),
        failed=dict(Counter(record.error for record in records if not record.ok)),
        example_errors={record.error: record.detail for record in reversed(records) if not record.ok},
        unfinished=unfinished,
        duration_s=duration,
        prompt_tokens=sum(record.prompt_tokens for record in good),
        cached_tokens=sum(record.cached_tokens for record in good),
        output_tokens=sum(record.output_tokens for record in good),
        tokens_counted_by_server=all(record.counted_by_server for record in good),
        latencies={name: Distribution.of(times) for name, times in latencies_s(good).items()},
        prefill_tok_s=prefill,
        decode_tok_s=decode,
        good=None if slo is None else sum(slo.met_by(record) for record in records),
        client_cpu_share=client_cpu_s / duration if duration > 0 else 0.0,
    )


def latencies_s(records: Iterable[RequestRecord]) -> dict[str, list[float]]:
    """All latencies of successful requests by name, in seconds; all gaps are one population."""
    records = list(records)
    return {
        "ttft": [value for record in records if (value := record.ttft_s) is not None],
        "itl": [gap for record in records for gap in record.gaps_s],
        "tpot": [value for record in records if (value := record.tpot_s) is not None],
        "e2e": [record.e2e_s for record in records],
    }


def _wave_rates(waves: Sequence[Sequence[RequestRecord]]) -> tuple[float | None, float | None]:
    """Median over the waves of prefill and decode tokens per second."""
    whole = [wave for wave in waves if wave and all(record.ok and record.text_s for record in wave)]
    prefills, decodes = [], []
    for wave in whole:
        start = min(record.started_s for record in wave)
        all_started = max(record.text_s[0] for record in wave)
        end = max(record.text_s[-1] for record in wave)
        prompt_tokens = sum(record.prompt_tokens for record in wave)
        if prompt_tokens:
            prefills.append(prompt_tokens / (all_started - start))
        if end > all_started:
            tokens = sum(_tokens_after(record, all_started) for record in wave)
            decodes.append(tokens / (end - all_started))
    return (
        percentile(sorted(prefills), 0.5) if prefills else None,
        percentile(sorted(decodes), 0.5) if decodes else None,
    )


def _tokens_after(record: RequestRecord, after_s: float) -> float:
    """Output tokens that came later; every piece is taken to hold the same number of them."""
    pieces = sum(time_s > after_s for time_s in record.text_s)
    return pieces * record.output_tokens / len(record.text_s)
