import numpy as np
import pytest

from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache
from rhizome_engine.kvcache.sequence_pages import SequencePages


def ids(*tokens):
    return np.array(tokens, np.int32)


class Copies(list):
    def __call__(self, src, dst, num_slots):
        self.append((src, dst, num_slots))


@pytest.fixture
def pool():
    return PagePool(8, 4)


@pytest.fixture
def cache(pool):
    return RadixCache(pool)


@pytest.fixture
def hold(pool, cache):
    return lambda max_tokens=32: SequencePages(pool, cache, "", np.zeros(-(-max_tokens // 4), np.int32))


def test_reserves_by_the_page_and_releases_everything(pool, hold):
    pages = hold()
    assert pages.attach(ids(1, 2, 3, 4, 5), Copies(), 0) == 0
    assert pages.reserve(5) and pages.num_pages == 2
    assert pages.reserve(8) and pages.num_pages == 2
    pages.release(ids())
    assert pool.num_free == 8


def test_whole_pages_stay_in_the_cache_and_the_tail_is_freed(pool, cache, hold):
    pages = hold()
    pages.attach(ids(*range(7)), Copies(), 0)
    pages.reserve(7)
    pages.release(ids(*range(7)))
    assert (pool.num_free, cache.evictable_pages, cache.protected_pages) == (7, 1, 0)


def test_a_page_that_matches_in_part_is_copied(pool, cache, hold):
    first = hold()
    first.attach(ids(*range(9)), Copies(), 0)
    first.reserve(9)
    source = int(first.pages[1])
    first.release(ids(*range(8)))
    copies, second = Copies(), hold()
    assert second.attach(ids(0, 1, 2, 3, 4, 5, 99), copies, 0) == 6
    assert copies == [(source, int(second.pages[1]), 2)]
    assert len(second.own_pages) == 1 and second.num_shared == 1
    second.release(ids())


def test_the_last_token_is_left_to_compute_even_when_all_is_cached(hold):
    first = hold()
    first.attach(ids(*range(8)), Copies(), 0)
    first.reserve(8)
    first.release(ids(*range(8)))
    assert hold().attach(ids(*range(8)), Copies(), 0) == 7


def test_nothing_is_held_when_there_is_no_room(pool, cache, hold):
    first = hold()
    first.attach(ids(*range(24)), Copies(), 0)
    first.reserve(24)
    copies, second = Copies(), hold()
    assert second.attach(ids(*range(100, 109)), copies, 0) is None
    assert second.attach(ids(*range(100, 108)), copies, 1) is None
    assert second.num_pages == 0 and pool.num_free == 2
    assert second.attach(ids(*range(100, 108)), copies, 0) == 0


def test_making_room_for_the_copy_never_evicts_its_source(pool, cache, hold):
    for start in (0, 50):  # the older one would be evicted first
        first = hold()
        first.attach(ids(*range(start, start + 16)), Copies(), 0)
        first.reserve(16)
        first.release(ids(*range(start, start + 16)))
    assert pool.num_free == 0
    copies, second = Copies(), hold()
    assert second.attach(ids(0, 1, 99), copies, 0) == 2
    source, destination, _ = copies[0]
    assert source != destination and source in cache.match("", ids(*range(16))).pages
    assert pool.num_free + cache.evictable_pages + cache.protected_pages + len(second.own_pages) == 8


def test_a_copy_for_which_there_is_no_page_is_left_out(pool, cache, hold):
    first = hold()
    first.attach(ids(*range(32)), Copies(), 0)
    first.reserve(32)
    first.release(ids(*range(32)))  # the whole pool is one cached leaf, and the source is in it
    copies, second = Copies(), hold()
    assert second.attach(ids(0, 1, 2, 3, 4, 5, 99), copies, 0) == 4 and not copies
    assert second.reserve(7)


def test_pages_shared_while_in_use_replace_duplicates_and_stay_locked(pool, cache, hold):
    first, second = hold(), hold()
    for pages in (first, second):
        pages.attach(ids(*range(9)), Copies(), 0)
        pages.reserve(9)
    first.share(ids(*range(9)))
    second.share(ids(*range(9)))
    assert second.pages[:2].tolist() == first.pages[:2].tolist()
    assert second.pages[2] != first.pages[2] and pool.num_free == 4
    first.release(ids(*range(9)))
    assert cache.evict(8) == 0 and cache.protected_pages == 2
    second.release(ids(*range(9)))
    assert cache.evict(8) == 2 and pool.num_free == 8


def test_without_trust_nothing_is_cached(pool, cache, hold):
    pages = hold()
    pages.attach(ids(*range(9)), Copies(), 0)
    pages.reserve(9)
    pages.release(ids())
    assert cache.num_nodes == 0 and pool.num_free == 8
