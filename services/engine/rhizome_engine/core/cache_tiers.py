"""The prefix cache of an engine, put together: pool, tree, host tier, pins, and who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rhizome_engine.core.kv_event_log import KvEventLog
from rhizome_engine.kvcache.cache_survey import CacheSurvey
from rhizome_engine.kvcache.eviction import eviction_policy
from rhizome_engine.kvcache.host_tier import HostTier
from rhizome_engine.kvcache.listener import CacheListener
from rhizome_engine.kvcache.page_copies import PageCopies
from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.pins import PinnedPrefixes
from rhizome_engine.kvcache.radix_cache import RadixCache, UseClock
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request


class CacheTiers:
    """What an engine core keeps of prompts, and where.

    Args:
        num_pages: pages of the device's pool.
        num_host_pages: pages in the host's memory; 0 for no host tier.
        page_size: tokens per page.
        config: policy of eviction and budget of pins.
        clock: monotonic seconds, for pins.

    Attributes:
        pool: the device's free pages.
        cache: the device's tree.
        host: the second tier, None where there is none.
        copies: of pages, for the next step.
        events: what comes and goes.
        pins: prefixes that stay.
        survey: looks at all of it.
    """

    def __init__(
        self,
        num_pages: int,
        num_host_pages: int,
        page_size: int,
        config: SchedulerConfig,
        clock: Callable[[], float],
    ) -> None:
        self.pool = PagePool(num_pages, page_size)
        self.copies = PageCopies()
        has_host = num_host_pages > 0
        self.events = KvEventLog(num_pages + num_host_pages, page_size, has_host=has_host)
        uses = UseClock()
        listeners: list[CacheListener] = [self.events]
        self.host: HostTier | None = None
        if has_host:
            self.host = HostTier(num_host_pages, page_size, num_pages, self.copies, uses, [self.events])
            listeners.insert(0, self.host)  # what it saves has not left the cache when events hear of it
        self.cache = RadixCache(self.pool, eviction_policy(config.eviction_policy), listeners, uses)
        pinned = config.max_pinned_tokens
        budget = num_pages // 4 if pinned is None else pinned // page_size
        self.pins = PinnedPrefixes(self.cache, page_size, budget, clock)
        self.survey = CacheSurvey(self.cache, self.pins, None if self.host is None else self.host.cache)

    def flush(self, namespace: str | None) -> int:
        """Drop every cached prefix that nobody holds, of one namespace or of all.

        Returns:
            pages that the device got back.
        """
        if self.host is None:
            return self.cache.clear(namespace)
        return self.host.flush(self.cache, namespace)

    def distrust_host(self, running: Iterable[Request]) -> list[Request]:
        """Forget what the host has: a step with copies failed, so nobody knows which of them were done.

        Returns:
            requests whose pages were to get something from there.
        """
        if self.host is None:
            return []
        self.host.cache.clear()
        return [request for request in running if request.pages and request.pages.are_loading]
