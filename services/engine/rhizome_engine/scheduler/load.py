"""How busy the engine is: what `Load` in the contract reports."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from rhizome_engine.scheduler.request import Timings

_WINDOW_S = 5.0
_BUCKET_S = 0.25
_LAST_FINISHED = 100

Outcome = Literal["completed", "aborted", "expired", "failed", "invalid"]
"""How an accepted request ended; the name of its count in `RequestTotals`."""


@dataclass(slots=True)
class RequestTotals:
    """Counts since the engine core started.

    When no request is open, `received` is the sum of `completed`, `aborted`, `expired`, `failed` and
    `invalid`, and tokens and times are the sums of what the requests' last events said; but tokens that an
    earlier engine generated count in a resumed request's usage only.

    Attributes:
        received: requests accepted into the queue.
        completed: requests that ended by a stop condition or by length.
        aborted: requests cancelled by the caller, or whose caller vanished.
        expired: requests whose deadline passed, those that the caller cancelled in that moment included.
        failed: requests that the engine could not finish.
        invalid: requests that asked for what cannot be, as a grammar that does not compile.
        refused: requests turned away because the queue was full.
        preemptions: times a running request gave its pages back.
        prompt_tokens: tokens in the prompts of accepted requests.
        cache_hit_tokens: prompt tokens found in the prefix cache.
        cache_miss_tokens: prompt tokens that had to be computed.
        generated_tokens: tokens generated.
        forced_tokens: those of them that a grammar dictated.
        queue_s: time that ended requests spent in the queue.
        prefill_s: time until their first token.
        decode_s: time from their first token to their last.
        steps: steps computed.
        replayed_steps: those of them that replayed a recording, as a CUDA graph.
        recordings: recordings that were made.
        recording_s: seconds that took.
        host_saved_tokens: tokens copied to the host tier as they were evicted.
        host_loaded_tokens: tokens that came back from there and were not computed.
    """

    received: int = 0
    completed: int = 0
    aborted: int = 0
    expired: int = 0
    failed: int = 0
    invalid: int = 0
    refused: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    cache_hit_tokens: int = 0
    cache_miss_tokens: int = 0
    generated_tokens: int = 0
    forced_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    steps: int = 0
    replayed_steps: int = 0
    recordings: int = 0
    recording_s: float = 0.0
    host_saved_tokens: int = 0
    host_loaded_tokens: int = 0


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
        host_pages_total: pages of the host tier, 0 without one.
        host_pages_cached: those of them that hold prefixes.
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
    host_pages_total: int
    host_pages_cached: int
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

    def received(self, prompt_tokens: int) -> None:
        """Note a request that was accepted."""
        self.totals.received += 1
        self.totals.prompt_tokens += prompt_tokens

    def started(self, hit_tokens: int, miss_tokens: int) -> None:
        """Note a request that runs for the first time."""
        self.totals.cache_hit_tokens += hit_tokens
        self.totals.cache_miss_tokens += miss_tokens

    def ended(self, outcome: Outcome, timings: Timings) -> None:
        """Note the end of an accepted request."""
        totals = self.totals
        setattr(totals, outcome, getattr(totals, outcome) + 1)
        totals.queue_s += timings.queue_s
        totals.prefill_s += timings.prefill_s
        totals.decode_s += timings.decode_s
        if outcome == "completed":
            self._finished.append(timings)

    def retry_after_s(self, waiting: int, concurrency: int) -> float:
        """Estimate when there will be room in a full queue: when a tenth of it has gone, within bounds."""
        means = self.mean_times()
        if means is None:
            return 1.0
        per_request = (means.prefill_s + means.decode_s) / concurrency
        return min(max(per_request * waiting / 10, 0.5), 30.0)

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
