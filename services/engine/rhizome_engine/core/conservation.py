"""The invariant of the KV pool, for tests: nothing is lost and nothing has two owners."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.pins import PinnedPrefixes
from rhizome_engine.kvcache.radix_cache import RadixCache
from rhizome_engine.scheduler.request import Request
from rhizome_engine.scheduler.slots import SlotTable


def check_conservation(
    pool: PagePool, cache: RadixCache, slots: SlotTable, running: Sequence[Request], pins: PinnedPrefixes
) -> None:
    """Assert that every page is free, cached or in flight, and in one place only.

    Raises:
        AssertionError: a page was lost or has two owners.
    """
    cached = [node.pages for node in cache.nodes()]
    own = [request.pages.own_pages for request in running if request.pages]
    pages = np.concatenate([pool.free_pages, *cached, *own])
    assert len(pages) == len(np.unique(pages)) == pool.num_pages, "pages were lost or doubled"
    in_tree = cache.evictable_pages + cache.protected_pages
    assert in_tree == sum(map(len, cached)), "the cache miscounts its pages"
    assert slots.num_free + len(running) == len(slots.known), "slots were lost"
    if not running:
        assert cache.protected_pages == pins.pinned_pages, "pages are locked, but nobody runs or pinned them"
