"""What the engine core says about itself, as the contract has it: load, cache, pins."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rhizome.engine.v1 import engine_admin_service_pb2 as admin
from rhizome.engine.v1 import load_pb2
from rhizome_engine.core.durations import to_duration
from rhizome_engine.kvcache.namespace_stats import NamespaceStats
from rhizome_engine.kvcache.pins import Pin
from rhizome_engine.scheduler.load import Load


def to_load(load: Load, instance_id: str, sequence: int) -> load_pb2.Load:
    """The core's load as the contract has it."""
    totals = load.totals
    message = load_pb2.Load(
        instance_id=instance_id,
        sequence=sequence,
        running_requests=load.running_requests,
        waiting_requests=load.waiting_requests,
        waiting_tokens=load.waiting_tokens,
        kv_pages_total=load.kv_pages_total,
        kv_pages_in_use=load.kv_pages_in_use,
        kv_pages_cached=load.kv_pages_cached,
        page_size=load.page_size,
        host_pages_total=load.host_pages_total,
        host_pages_cached=load.host_pages_cached,
        generated_tokens_per_second=load.generated_tokens_per_second,
        totals=load_pb2.RequestTotals(
            received=totals.received,
            completed=totals.completed,
            aborted=totals.aborted,
            refused=totals.refused,
            preemptions=totals.preemptions,
            cache_hit_tokens=totals.cache_hit_tokens,
            cache_miss_tokens=totals.cache_miss_tokens,
            generated_tokens=totals.generated_tokens,
            failed=totals.failed,
            expired=totals.expired,
            prompt_tokens=totals.prompt_tokens,
            forced_tokens=totals.forced_tokens,
            queue_time=to_duration(totals.queue_s),
            prefill_time=to_duration(totals.prefill_s),
            decode_time=to_duration(totals.decode_s),
            steps=totals.steps,
            invalid=totals.invalid,
            replayed_steps=totals.replayed_steps,
            recordings=totals.recordings,
            recording_time=to_duration(totals.recording_s),
            host_saved_tokens=totals.host_saved_tokens,
            host_loaded_tokens=totals.host_loaded_tokens,
        ),
    )
    if load.mean_times is not None:
        message.mean_times.queue.CopyFrom(to_duration(load.mean_times.queue_s))
        message.mean_times.prefill.CopyFrom(to_duration(load.mean_times.prefill_s))
        message.mean_times.decode.CopyFrom(to_duration(load.mean_times.decode_s))
    return message


def to_cache_stats(
    stats: Mapping[str, NamespaceStats], host: Mapping[str, NamespaceStats] | None = None
) -> admin.GetCacheStatsResponse:
    """Counts per namespace, and their sum.

    Args:
        stats: of the cache.
        host: of the host tier, None without one.
    """
    namespaces, total = _of_namespaces(stats)
    response = admin.GetCacheStatsResponse(namespaces=namespaces, total=total)
    if host is not None:
        namespaces, total = _of_namespaces(host)
        response.host_namespaces.extend(namespaces)
        response.host_total.CopyFrom(total)
    return response


def _of_namespaces(
    stats: Mapping[str, NamespaceStats],
) -> tuple[list[admin.NamespaceStats], admin.NamespaceStats]:
    namespaces = [_namespace_stats(name, stats[name]) for name in sorted(stats)]
    total = admin.NamespaceStats()
    for field in admin.NamespaceStats.DESCRIPTOR.fields:
        if field.name != "cache_namespace":
            setattr(total, field.name, sum(getattr(one, field.name) for one in namespaces))
    return namespaces, total


def to_pin(pin: Pin) -> admin.Pin:
    """A pinned prefix."""
    message = admin.Pin(
        pin_id=pin.id, cache_namespace=pin.namespace, tokens=pin.num_tokens, pages=pin.num_pages
    )
    if pin.expires_at is not None:
        left_s = pin.expires_at - time.monotonic()
        message.expire_time.FromNanoseconds(time.time_ns() + round(left_s * 1e9))
    return message


def _namespace_stats(name: str, stats: NamespaceStats) -> admin.NamespaceStats:
    return admin.NamespaceStats(
        cache_namespace=name,
        hits=stats.lookups_hit,
        misses=stats.lookups_missed,
        tokens_saved=stats.hit_tokens,
        missed_tokens=stats.miss_tokens,
        evicted_pages=stats.evicted_pages,
        cached_pages=stats.cached_pages,
        stored_pages=stats.stored_pages,
        flushed_pages=stats.flushed_pages,
    )
