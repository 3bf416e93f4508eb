"""The invariant of the KV pool, for tests: nothing is lost and nothing has two owners."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rhizome_engine.core.cache_tiers import CacheTiers
from rhizome_engine.kvcache.host_tier import HostTier
from rhizome_engine.scheduler.request import Request
from rhizome_engine.scheduler.slots import SlotTable


def check_conservation(tiers: CacheTiers, slots: SlotTable, running: Sequence[Request]) -> None:
    """Assert that every page is free, cached or in flight, and in one place only, in each tier.

    Raises:
        AssertionError: a page was lost or has two owners.
    """
    pool, cache = tiers.pool, tiers.cache
    cached = [node.pages for node in cache.nodes()]
    own = [request.pages.own_pages for request in running if request.pages]
    pages = np.concatenate([pool.free_pages, *cached, *own])
    assert len(pages) == len(np.unique(pages)) == pool.num_pages, "pages were lost or doubled"
    in_tree = cache.evictable_pages + cache.protected_pages
    assert in_tree == sum(map(len, cached)), "the cache miscounts its pages"
    assert slots.num_free + len(running) == len(slots.known), "slots were lost"
    if not running:
        pinned = tiers.pins.pinned_pages
        assert cache.protected_pages == pinned, "pages are locked, but nobody runs or pinned them"
    if tiers.host is not None:
        _check_host(tiers.host, pool.num_pages)


def _check_host(host: HostTier, first_page: int) -> None:
    """Assert the same of the host tier, where nothing is ever in flight."""
    cached = [node.pages for node in host.cache.nodes()]
    pages = np.sort(np.concatenate([host.pool.free_pages, *cached]))
    expected = np.arange(first_page, first_page + host.pool.num_pages)
    assert np.array_equal(pages, expected), "pages of the host were lost or doubled"
    assert host.cache.protected_pages == 0, "pages of the host are locked, but nobody loads them"
    assert host.cache.evictable_pages == sum(map(len, cached)), "the host miscounts its pages"
