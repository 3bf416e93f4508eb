"""Ended requests by what they took, as `GetLoad` reports them beside the totals.

Every request that was accepted passes here once, when it ends, with the same times that its last event tells;
so the sums are those of `RequestTotals`.
"""

from __future__ import annotations

from rhizome.engine.v1 import load_pb2
from rhizome_engine.core.events import FailedEvent, FinishedEvent
from rhizome_engine.core.histogram import GAP_BOUNDS_S, Histogram, TokenGaps

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_TOKENS = (0, 16, 64, 256, 1024, 4096, 16384, 65536)


class RequestHistograms:
    """One histogram per phase; each counts the requests that reached it, whatever they ended with.

    Args:
        gaps: between tokens, which the engine core counts while requests run.
    """

    def __init__(self, gaps: TokenGaps) -> None:
        self._gaps = gaps
        self._queue = Histogram(_SECONDS)
        self._prefill = Histogram(_SECONDS)
        self._decode = Histogram(_SECONDS)
        self._first_token = Histogram(_SECONDS)
        self._cached_tokens = Histogram(_TOKENS)
        self._per_token = Histogram(GAP_BOUNDS_S)
        self._prompt_tokens = Histogram(_TOKENS)
        self._generated_tokens = Histogram(_TOKENS)
        self._durations: dict[str, Histogram] = {}

    def observe(self, event: FinishedEvent | FailedEvent) -> None:
        """Count a request that ended."""
        request, usage, timings = event.request, event.usage, event.timings
        self._queue.observe(timings.queue_s)
        if request.embedding is None:
            self._observe_generation(event)
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
            duration_seconds={ended: one.message() for ended, one in self._durations.items()},
            time_per_output_token_seconds=self._per_token.message(),
            inter_token_seconds=self._gaps.message(),
            prompt_tokens=self._prompt_tokens.message(),
            generated_tokens=self._generated_tokens.message(),
        )

    def _observe_generation(self, event: FinishedEvent | FailedEvent) -> None:
        usage, timings = event.usage, event.timings
        ended = event.reason.value if isinstance(event, FinishedEvent) else event.error.code.name
        took = self._durations.get(ended)
        if took is None:
            took = self._durations[ended] = Histogram(_SECONDS)
        took.observe(timings.queue_s + timings.prefill_s + timings.decode_s)
        self._prompt_tokens.observe(usage.prompt_tokens)
        generated = usage.completion_tokens - event.request.resumed_tokens
        self._generated_tokens.observe(generated)
        if generated > 1:
            self._per_token.observe(timings.decode_s / (generated - 1))
