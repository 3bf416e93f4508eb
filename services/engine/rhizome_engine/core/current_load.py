"""How busy the engine is at the moment, put together from those who know a part of it."""

from __future__ import annotations

from dataclasses import replace

from rhizome_engine.core.backlog import Backlog
from rhizome_engine.core.cache_tiers import CacheTiers
from rhizome_engine.core.runner_protocol import StepCounts
from rhizome_engine.scheduler.load import Load, LoadMeter
from rhizome_engine.scheduler.scheduler import Scheduler


def current_load(
    scheduler: Scheduler,
    backlog: Backlog,
    num_queued: int,
    tiers: CacheTiers,
    meter: LoadMeter,
    counts: StepCounts,
    now: float,
) -> Load:
    """Return the load.

    Args:
        scheduler: whoever runs and waits.
        backlog: requests of calls with many, not queued yet.
        num_queued: requests in the queue, those with a grammar to compile included.
        tiers: of prefixes.
        meter: counts what happened.
        counts: how the runner computed steps.
        now: on the meter's clock.
    """
    pool, cache, host = tiers.pool, tiers.cache, tiers.host
    running, waiting = scheduler.running, scheduler.waiting
    missing = [each.num_tokens - each.num_computed for each in (*running, *waiting, *backlog)]
    return Load(
        running_requests=len(running),
        waiting_requests=num_queued + len(backlog),
        waiting_tokens=sum(tokens for tokens in missing if tokens > 1),
        kv_pages_total=pool.num_pages,
        kv_pages_in_use=pool.num_pages - pool.num_free - cache.evictable_pages,
        kv_pages_cached=cache.evictable_pages,
        page_size=pool.page_size,
        host_pages_total=0 if host is None else host.pool.num_pages,
        host_pages_cached=0 if host is None else host.cache.evictable_pages,
        totals=replace(
            meter.totals,
            host_saved_tokens=0 if host is None else host.saved_tokens,
            host_loaded_tokens=0 if host is None else host.loaded_tokens,
            preemptions=scheduler.num_preemptions,
            replayed_steps=counts.replayed,
            recordings=counts.recordings,
            recording_s=counts.recording_s,
        ),
        generated_tokens_per_second=meter.tokens_per_second(now),
        mean_times=meter.mean_times(),
    )
