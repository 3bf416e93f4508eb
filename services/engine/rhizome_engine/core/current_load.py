"""How busy the engine is at the moment, put together from those who know a part of it."""

from __future__ import annotations

from dataclasses import replace

from rhizome_engine.core.backlog import Backlog
from rhizome_engine.core.runner_protocol import StepCounts
from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache
from rhizome_engine.scheduler.load import Load, LoadMeter
from rhizome_engine.scheduler.scheduler import Scheduler


def current_load(
    scheduler: Scheduler,
    backlog: Backlog,
    num_queued: int,
    pool: PagePool,
    cache: RadixCache,
    meter: LoadMeter,
    counts: StepCounts,
    now: float,
) -> Load:
    """Return the load.

    Args:
        scheduler: whoever runs and waits.
        backlog: requests of calls with many, not queued yet.
        num_queued: requests in the queue, those with a grammar to compile included.
        pool: of pages.
        cache: of prefixes.
        meter: counts what happened.
        counts: how the runner computed steps.
        now: on the meter's clock.
    """
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
        totals=replace(
            meter.totals,
            preemptions=scheduler.num_preemptions,
            replayed_steps=counts.replayed,
            recordings=counts.recordings,
            recording_s=counts.recording_s,
        ),
        generated_tokens_per_second=meter.tokens_per_second(now),
        mean_times=meter.mean_times(),
    )
