"""The engine's numbers for Prometheus: one `GetLoad` of the core per scrape, so both always agree."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import CancelledError

from google.protobuf.duration_pb2 import Duration

from rhizome.engine.v1.engine_service_pb2 import GetLoadResponse
from rhizome_engine.core.durations import to_seconds
from rhizome_telemetry.metrics import Metric, counter, gauge, histogram
from rhizome_transport.errors import EngineError

_log = logging.getLogger(__name__)

_SCRAPE_LIMIT_S = 5.0
"""Prometheus gives up after 10 s; a core answers between two steps."""

_GAUGES = (
    ("running_requests", "running_requests", "Requests with computed or computing tokens."),
    ("waiting_requests", "waiting_requests", "Requests that wait in the queue."),
    ("waiting_tokens", "waiting_tokens", "Prompt tokens that wait to be computed."),
    ("kv_pages", "kv_pages_total", "Pages of the KV pool."),
    ("kv_pages_in_use", "kv_pages_in_use", "Pages that requests hold now."),
    ("kv_pages_cached", "kv_pages_cached", "Pages that hold cached prefixes and can be evicted."),
    ("kv_page_size_tokens", "page_size", "Tokens per page of the KV pool."),
    (
        "generated_tokens_per_second",
        "generated_tokens_per_second",
        "Tokens generated per second over the last few seconds.",
    ),
)
"""Name without prefix, field of Load, help."""

_COUNTERS = (
    ("requests_received", "received", "Requests accepted into the queue."),
    ("requests_completed", "completed", "Requests that finished by a stop condition or by length."),
    ("requests_aborted", "aborted", "Requests cancelled by the caller, or lost with its connection."),
    ("requests_expired", "expired", "Requests that ended because their time was over."),
    ("requests_failed", "failed", "Requests that the engine could not compute."),
    (
        "requests_invalid",
        "invalid",
        "Requests that asked for what cannot be, as a grammar that does not compile.",
    ),
    ("requests_refused", "refused", "Requests refused because the queue was full."),
    ("preemptions", "preemptions", "Times that a running request gave its pages back."),
    ("prompt_tokens", "prompt_tokens", "Tokens in the prompts of accepted requests."),
    ("cache_hit_tokens", "cache_hit_tokens", "Prompt tokens found in the prefix cache."),
    ("cache_miss_tokens", "cache_miss_tokens", "Prompt tokens that had to be computed."),
    ("generated_tokens", "generated_tokens", "Tokens generated."),
    ("forced_tokens", "forced_tokens", "Generated tokens that a grammar dictated."),
    ("steps", "steps", "Steps computed."),
    ("queue_time_seconds", "queue_time", "Seconds that ended requests spent in the queue."),
    ("prefill_time_seconds", "prefill_time", "Seconds of ended requests until their first token."),
    ("decode_time_seconds", "decode_time", "Seconds of ended requests from their first token to the last."),
)
"""Name without prefix and `_total`, field of RequestTotals, help."""

_HISTOGRAMS = (
    ("request_queue_seconds", "queue_seconds", "Seconds in the queue, of each ended request."),
    (
        "request_prefill_seconds",
        "prefill_seconds",
        "Seconds from the first prefill chunk to the first token, of each ended request that left the queue.",
    ),
    (
        "request_decode_seconds",
        "decode_seconds",
        "Seconds from the first token to the last, of each ended request with a token.",
    ),
    (
        "request_time_to_first_token_seconds",
        "time_to_first_token_seconds",
        "Seconds from arrival to the first token, of each ended request with a token.",
    ),
    (
        "request_cached_tokens",
        "cached_tokens",
        "Prompt tokens found in the prefix cache, of each ended request that left the queue.",
    ),
)
"""Name without prefix, field of RequestHistograms, help."""


class EngineCollector:
    """Asks the core at each scrape.

    Args:
        load: asks the core; runs in `loop`.
        loop: the front's.
        model: the label of every value.
    """

    def __init__(
        self,
        load: Callable[[], Awaitable[GetLoadResponse]],
        loop: asyncio.AbstractEventLoop,
        model: str,
    ) -> None:
        self._load = load
        self._loop = loop
        self._labels = {"model": model}

    def collect(self) -> Iterator[Metric]:
        """The core's numbers; only that it is down while it does not answer. Called on another thread."""
        response = self._ask()
        text = "Whether the engine core has its model and answers."
        yield gauge("rhizome_engine_up", text, float(response is not None), self._labels)
        if response is not None:
            yield from self._families(response)

    def _ask(self) -> GetLoadResponse | None:
        async def ask() -> GetLoadResponse:
            async with asyncio.timeout(_SCRAPE_LIMIT_S):
                return await self._load()

        try:
            return asyncio.run_coroutine_threadsafe(ask(), self._loop).result(2 * _SCRAPE_LIMIT_S)
        except (EngineError, TimeoutError, CancelledError, RuntimeError) as error:  # the last two: it ends
            _log.debug("no numbers from the core: %s", error)
            return None

    def _families(self, response: GetLoadResponse) -> Iterator[Metric]:
        totals = response.load.totals
        known = {field.name: value for field, value in response.load.ListFields()}
        for name, field, text in _GAUGES:
            if field in known:
                yield gauge(f"rhizome_engine_{name}", text, known[field], self._labels)
        for name, field, text in _COUNTERS:
            value = getattr(totals, field)
            number = to_seconds(value) if isinstance(value, Duration) else value
            yield counter(f"rhizome_engine_{name}", text, number, self._labels)
        for name, field, text in _HISTOGRAMS:
            values = getattr(response.histograms, field)
            yield histogram(
                f"rhizome_engine_{name}",
                text,
                values.upper_bounds,
                values.counts,
                values.sum,
                self._labels,
            )
