"""How busy the engine is: what `Load` in the contract reports."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from rhizome_engine.scheduler.request import Timings

_WINDOW_S = 5.0
_BUCKET_S = 0.25
_LAST_FINISHED = 100


@dataclass(slots=True)
class RequestTotals:
    """Counts since the engine core started.

    Attributes:
        received: requests accepted into the queue.
        completed: requests that ended by a stop condition or by length.
        aborted: requests cancelled by the caller or by a deadline.
        failed: requests that the engine could not finish.
        refused: requests turned away because the queue was full.
        preemptions: times a running request gave its pages back.
        cache_hit_tokens: prompt tokens found in the prefix cache.
        cache_miss_tokens: prompt tokens that had to be computed.
        generated_tokens: tokens generated.
    """

    received: int = 0
    completed: int = 0
    aborted: int = 0
    failed: int = 0
    refused: int = 0
    preemptions: int = 0
    cache_hit_tokens: int = 0
    cache_miss_tokens: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class MeanTimes:
    """Means over the last completed requests, in seconds."""

    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """A snapshot.

    Attributes:
        running_requests: requests that hold pages.
        waiting_requests: requests in the queue.
        waiting_tokens: known tokens that are not computed yet, over both, decoding requests left out.
        kv_pages_total: pages of the pool.
        kv_pages_in_use: pages that requests hold.
        kv_pages_cached: pages of the prefix cache that can be evicted.
        page_size: tokens per page.
        totals: counts since start; a copy.
        generated_tokens_per_second: over the last five seconds.
        mean_times: None before the first request completed.
    """

    running_requests: int
    waiting_requests: int
    waiting_tokens: int
    kv_pages_total: int
    kv_pages_in_use: int
    kv_pages_cached: int
    page_size: int
    totals: RequestTotals
    generated_tokens_per_second: float
    mean_times: MeanTimes | None


@dataclass(slots=True)
class LoadMeter:
    """Counts what happens.

    Attributes:
        start: when counting began, on the core's clock.
        totals: counts since then.
    """

    start: float
    totals: RequestTotals = field(default_factory=RequestTotals)
    _buckets: deque[tuple[int, int]] = field(default_factory=deque)
    _finished: deque[Timings] = field(default_factory=lambda: deque(maxlen=_LAST_FINISHED))

    def generated(self, tokens: int, now: float) -> None:
        """Note the tokens of one step."""
        self.totals.generated_tokens += tokens
        bucket = int(now / _BUCKET_S)
        if self._buckets and self._buckets[-1][0] == bucket:
            self._buckets[-1] = (bucket, self._buckets[-1][1] + tokens)
        else:
            self._buckets.append((bucket, tokens))
            self._forget(now)

    def completed(self, timings: Timings) -> None:
        """Note a request that ended well."""
        self.totals.completed += 1
        self._finished.append(timings)

    def tokens_per_second(self, now: float) -> float:
        """Tokens generated per second, over the last few seconds or since start where that is less."""
        self._forget(now)
        span = max(min(_WINDOW_S, now - self.start), _BUCKET_S)
        return sum(tokens for _, tokens in self._buckets) / span

    def mean_times(self) -> MeanTimes | None:
        """Means over the last completed requests."""
        count = len(self._finished)
        if not count:
            return None
        return MeanTimes(
            queue_s=sum(t.queue_s for t in self._finished) / count,
            prefill_s=sum(t.prefill_s for t in self._finished) / count,
            decode_s=sum(t.decode_s for t in self._finished) / count,
        )

    def _forget(self, now: float) -> None:
        oldest = int((now - _WINDOW_S) / _BUCKET_S)
        while self._buckets and self._buckets[0][0] <= oldest:
            self._buckets.popleft()
