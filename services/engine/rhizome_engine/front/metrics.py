"""The engine's numbers for Prometheus: one `GetLoad` of the core per scrape, so both always agree.

What OpenTelemetry's GenAI conventions have a name for has that name, with the labels that they require.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import CancelledError

from google.protobuf.duration_pb2 import Duration
from prometheus_client.core import HistogramMetricFamily

from rhizome.engine.v1.engine_service_pb2 import GetLoadResponse
from rhizome.engine.v1.load_pb2 import Histogram
from rhizome_engine.core.durations import to_seconds
from rhizome_telemetry import semconv
from rhizome_telemetry.metrics import Metric, counter, cumulative, gauge, histogram
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
    ("host_pages", "host_pages_total", "Pages of the host tier of the prefix cache."),
    ("host_pages_cached", "host_pages_cached", "Pages of the host tier that hold prefixes."),
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
    ("host_saved_tokens", "host_saved_tokens", "Tokens copied to the host tier as they were evicted."),
    ("host_loaded_tokens", "host_loaded_tokens", "Tokens that came back from the host tier."),
    ("generated_tokens", "generated_tokens", "Tokens generated."),
    ("forced_tokens", "forced_tokens", "Generated tokens that a grammar dictated."),
    ("steps", "steps", "Steps computed."),
    ("replayed_steps", "replayed_steps", "Steps that replayed a recording, as a CUDA graph."),
    ("recordings", "recordings", "Steps that were recorded, one per kind and size."),
    ("recording_seconds", "recording_time", "Seconds spent recording steps."),
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
        "inter_token_latency_seconds",
        "inter_token_seconds",
        "Seconds between a step that gave a request a token and the one before that did.",
    ),
    (
        "request_cached_tokens",
        "cached_tokens",
        "Prompt tokens found in the prefix cache, of each ended request that left the queue.",
    ),
    ("request_prompt_tokens", "prompt_tokens", "Tokens in the prompt, of each ended generation."),
    ("request_generated_tokens", "generated_tokens", "Tokens generated, of each ended generation."),
)
"""Name without prefix, field of RequestHistograms, help."""

_GEN_AI_HISTOGRAMS = (
    (
        "gen_ai_server_time_to_first_token_seconds",
        "time_to_first_token_seconds",
        "Seconds from arrival to the first token, of each ended request with a token.",
    ),
    (
        "gen_ai_server_time_per_output_token_seconds",
        "time_per_output_token_seconds",
        "Mean seconds between the tokens after the first, of each ended request with two or more.",
    ),
)
"""Name, field of RequestHistograms, help."""

_DURATION = "gen_ai_server_request_duration_seconds"
_DURATION_TEXT = (
    "Seconds from arrival to the last token, of each ended generation; error_type is empty for a good end."
)
_GOOD_ENDS = ("stop", "length")

Families = Callable[[GetLoadResponse], Iterable[Metric]]
"""What else is made of the same answer."""


class EngineCollector:
    """Asks the core at each scrape.

    Args:
        load: asks the core; runs in `loop`.
        loop: the front's.
        model: the label of every value.
        others: further families.
    """

    def __init__(
        self,
        load: Callable[[], Awaitable[GetLoadResponse]],
        loop: asyncio.AbstractEventLoop,
        model: str,
        *others: Families,
    ) -> None:
        self._load = load
        self._loop = loop
        self._labels = {"model": model}
        self._gen_ai_labels = {
            "gen_ai_operation_name": semconv.OPERATION_TEXT_COMPLETION,
            "gen_ai_provider_name": semconv.PROVIDER_NAME,
            "gen_ai_request_model": model,
        }
        self._others = others

    def collect(self) -> Iterator[Metric]:
        """The core's numbers; only that it is down while it does not answer. Called on another thread."""
        response = self._ask()
        text = "Whether the engine core has its model and answers."
        yield gauge("rhizome_engine_up", text, float(response is not None), self._labels)
        if response is not None:
            yield from self._families(response)
            for families in self._others:
                yield from families(response)

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
            yield as_histogram(
                f"rhizome_engine_{name}", text, getattr(response.histograms, field), self._labels
            )
        for name, field, text in _GEN_AI_HISTOGRAMS:
            yield as_histogram(name, text, getattr(response.histograms, field), self._gen_ai_labels)
        yield self._durations(response)

    def _durations(self, response: GetLoadResponse) -> Metric:
        labels = [*self._gen_ai_labels, "rhizome_finish_reason", "error_type"]
        family = HistogramMetricFamily(_DURATION, _DURATION_TEXT, labels=labels)
        for ended, took in sorted(response.histograms.duration_seconds.items()):
            how = (ended, "") if ended in _GOOD_ENDS else ("", ended)
            buckets = cumulative(took.upper_bounds, took.counts)
            family.add_metric([*self._gen_ai_labels.values(), *how], buckets, took.sum)
        return family


def as_histogram(name: str, text: str, values: Histogram, labels: dict[str, str]) -> Metric:
    """A histogram of the contract as Prometheus has it."""
    return histogram(name, text, values.upper_bounds, values.counts, values.sum, labels)
