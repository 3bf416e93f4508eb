"""An engine's `Load` as the sections `engine`, `cache` and `queue` of `/v1/metrics`.

What the engine does not tell is null, which never means none.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration

from rhizome.engine.v1.load_pb2 import Load, MeanTimes, RequestTotals


def engine_section(load: Load) -> dict[str, Any]:
    """What it computes and has computed; averages are over the last finished requests."""
    return {
        "running_requests": _known(load, "running_requests"),
        "total_requests": _total(load, "received"),
        "completed_requests": _total(load, "completed"),
        "aborted_requests": _total(load, "aborted"),
        "failed_requests": _total(load, "failed"),
        "expired_requests": _total(load, "expired"),
        "invalid_requests": _total(load, "invalid"),
        "preemptions": _total(load, "preemptions"),
        "prompt_tokens": _total(load, "prompt_tokens"),
        "generated_tokens": _total(load, "generated_tokens"),
        "steps": _total(load, "steps"),
        "tokens_per_second": _rounded(_known(load, "generated_tokens_per_second"), 1),
        "avg_prefill_time_ms": _mean_ms(load, "prefill"),
        "avg_decode_time_ms": _mean_ms(load, "decode"),
    }


def cache_section(load: Load) -> dict[str, Any]:
    """The KV pool and the prefix cache in it and in host memory; rates are between 0 and 1."""
    pages, in_use = _known(load, "kv_pages_total"), _known(load, "kv_pages_in_use")
    hits, misses = _total(load, "cache_hit_tokens"), _total(load, "cache_miss_tokens")
    return {
        "hit_rate": None if hits is None or misses is None else _share(hits, hits + misses),
        "hit_tokens": hits,
        "miss_tokens": misses,
        "kv_utilization_percent": _rounded(_percent(in_use, pages), 2),
        "pages_total": pages,
        "pages_in_use": in_use,
        "pages_cached": _known(load, "kv_pages_cached"),
        "page_size_tokens": _known(load, "page_size"),
        "host_pages_total": _known(load, "host_pages_total"),
        "host_pages_cached": _known(load, "host_pages_cached"),
        "host_loaded_tokens": _total(load, "host_loaded_tokens"),
    }


def queue_section(load: Load) -> dict[str, Any]:
    """What waits."""
    return {
        "waiting_requests": _known(load, "waiting_requests"),
        "waiting_tokens": _known(load, "waiting_tokens"),
        "refused_requests": _total(load, "refused"),
        "avg_queue_time_ms": _mean_ms(load, "queue"),
    }


def _known(load: Load, field: str) -> Any:
    return getattr(load, field) if load.HasField(field) else None  # type: ignore[arg-type]


def _total(load: Load, field: str) -> int | None:
    return getattr(load.totals, field) if load.HasField("totals") else None


def _mean_ms(load: Load, phase: str) -> float | None:
    """Over the last finished requests; behind a proxy, which sums engines, over all that ended."""
    if load.HasField("mean_times"):
        return _duration_ms(load.mean_times, phase)
    totals = load.totals
    spent_ms = _duration_ms(totals, f"{phase}_time")
    ended = totals.completed + totals.aborted + totals.failed + totals.expired + totals.invalid
    return None if spent_ms is None or not ended else round(spent_ms / ended, 3)


def _duration_ms(times: MeanTimes | RequestTotals, field: str) -> float | None:
    if not times.HasField(field):  # type: ignore[arg-type]
        return None
    duration: Duration = getattr(times, field)
    return round(duration.seconds * 1e3 + duration.nanos / 1e6, 3)


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def _percent(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else 100 * part / whole


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
