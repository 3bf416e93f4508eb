"""The engine's numbers under vLLM's names, as of its version 0.29, for whatever knows those.

Dashboards do, and Kubernetes' endpoint picker for inference pools, which reads how many requests run and
wait, how full the KV cache is, how large it is, and which adapters are loaded. Only numbers that mean the
same here are repeated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily

from rhizome.engine.v1.engine_service_pb2 import GetLoadResponse
from rhizome.engine.v1.load_pb2 import Histogram
from rhizome_engine.front.metrics import as_histogram
from rhizome_telemetry.metrics import Metric, counter, gauge

_GAUGES: Final = (
    ("num_requests_running", "running_requests", "Requests with computed or computing tokens."),
    ("num_requests_waiting", "waiting_requests", "Requests that wait in the queue."),
)
"""Name without prefix, field of Load, help."""

_COUNTERS: Final = (
    ("prefix_cache_hits", ("cache_hit_tokens",), "Prompt tokens found in the prefix cache."),
    (
        "prefix_cache_queries",
        ("cache_hit_tokens", "cache_miss_tokens"),
        "Prompt tokens looked for in the prefix cache.",
    ),
    ("prompt_tokens", ("prompt_tokens",), "Tokens in the prompts of accepted requests."),
    ("prompt_tokens_cached", ("cache_hit_tokens",), "Prompt tokens found in the prefix cache."),
    ("generation_tokens", ("generated_tokens",), "Tokens generated."),
    ("num_preemptions", ("preemptions",), "Times that a running request gave its pages back."),
)
"""Name without prefix and `_total`, fields of RequestTotals whose sum it is, help."""

_GAP: Final = "Seconds between the tokens of a request."
_HISTOGRAMS: Final = (
    (
        "time_to_first_token_seconds",
        "time_to_first_token_seconds",
        "Seconds from arrival to the first token.",
    ),
    ("inter_token_latency_seconds", "inter_token_seconds", _GAP),
    ("time_per_output_token_seconds", "inter_token_seconds", f"{_GAP} The name of old dashboards."),
    (
        "request_time_per_output_token_seconds",
        "time_per_output_token_seconds",
        "Mean seconds between the tokens of a request after its first.",
    ),
    ("request_queue_time_seconds", "queue_seconds", "Seconds in the queue."),
    ("request_prefill_time_seconds", "prefill_seconds", "Seconds from leaving the queue to the first token."),
    ("request_decode_time_seconds", "decode_seconds", "Seconds from the first token to the last."),
    ("request_prompt_tokens", "prompt_tokens", "Tokens in the prompt."),
    ("request_generation_tokens", "generated_tokens", "Tokens generated."),
    (
        "request_max_num_generation_tokens",
        "generated_tokens",
        "Tokens generated; a request has one answer here.",
    ),
)
"""Name without prefix, field of RequestHistograms, help."""

_FINISHED: Final = {"stop": "stop", "length": "length", "cancelled": "abort"}
"""Our word for how a request ended, and vLLM's; whatever is not here is an error."""


class VllmNames:
    """Makes the families.

    Args:
        model: the served name.
    """

    def __init__(self, model: str) -> None:
        self._labels = {"model_name": model, "engine": "0"}

    def families(self, response: GetLoadResponse) -> Iterator[Metric]:
        """Everything that vLLM has a name for."""
        load, totals = response.load, response.load.totals
        for name, field, text in _GAUGES:
            yield gauge(f"vllm:{name}", text, getattr(load, field), self._labels)
        used = load.kv_pages_in_use / load.kv_pages_total if load.kv_pages_total else 0.0
        yield gauge("vllm:kv_cache_usage_perc", "Share of the KV pool in use, 1 for all.", used, self._labels)
        for name, fields, text in _COUNTERS:
            value = sum(getattr(totals, field) for field in fields)
            yield counter(f"vllm:{name}", text, value, self._labels)
        for name, field, text in _HISTOGRAMS:
            yield as_histogram(f"vllm:{name}", text, getattr(response.histograms, field), self._labels)
        yield from self._ended(response)
        yield from self._configuration(response)

    def _ended(self, response: GetLoadResponse) -> Iterator[Metric]:
        whole = Histogram()
        counts = dict.fromkeys((*_FINISHED.values(), "error"), 0)
        for ended, took in response.histograms.duration_seconds.items():
            counts[_FINISHED.get(ended, "error")] += sum(took.counts)
            _add(whole, took)
        if whole.counts:
            text = "Seconds from arrival to the last token."
            yield as_histogram("vllm:e2e_request_latency_seconds", text, whole, self._labels)
        text = "Requests that ended, by how."
        family = CounterMetricFamily("vllm:request_success", text, labels=[*self._labels, "finished_reason"])
        for reason, count in counts.items():
            family.add_metric([*self._labels.values(), reason], count)
        yield family

    def _configuration(self, response: GetLoadResponse) -> Iterator[Metric]:
        load = response.load
        cache = {
            "block_size": str(load.page_size),
            "num_gpu_blocks": str(load.kv_pages_total),
            "enable_prefix_caching": "True",
            "engine": "0",
        }
        yield gauge("vllm:cache_config_info", "The KV pool, in its labels.", 1, cache)
        adapters = {"max_lora": "0", "waiting_lora_adapters": "", "running_lora_adapters": ""}
        text = "Adapters, in its labels: there are none; the value is the time."
        yield gauge("vllm:lora_requests_info", text, time.time(), adapters)


def _add(whole: Histogram, part: Histogram) -> None:
    if not whole.counts:
        whole.upper_bounds.extend(part.upper_bounds)
        whole.counts.extend([0] * len(part.counts))
    for index, count in enumerate(part.counts):
        whole.counts[index] += count
    whole.sum += part.sum
