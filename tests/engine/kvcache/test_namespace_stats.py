import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rhizome_engine.kvcache.namespace_stats import OTHER_NAMESPACES, NamespaceStats, NamespaceTable
from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache


def ids(*tokens):
    return np.array(tokens, np.int32)


def test_counts_what_each_namespace_asked_got_and_left():
    pool = PagePool(8, 2)
    cache = RadixCache(pool)
    cache.record_lookup("a", 0, 5)
    cache.insert("a", ids(1, 2, 3, 4), pool.allocate(2))
    cache.record_lookup("a", 4, 1)
    cache.insert("b", ids(1, 2), pool.allocate(1))
    cache.evict(1)
    cache.clear("b")
    stats = cache.stats()
    assert stats["a"] == NamespaceStats(
        lookups_hit=1,
        lookups_missed=1,
        hit_tokens=4,
        miss_tokens=6,
        stored_pages=2,
        evicted_pages=1,
        cached_pages=1,
    )
    assert stats["b"] == NamespaceStats(stored_pages=1, flushed_pages=1)
    cache.evict(1)
    assert cache.stats()["a"].evicted_nodes == 1
    assert cache.total_stats().evicted_pages == 2 and cache.total_stats().cached_pages == 0


def test_a_lookup_alone_counts_nothing():
    cache = RadixCache(PagePool(8, 2))
    cache.match("a", ids(1, 2))
    cache.peek("a", ids(1, 2))
    assert cache.stats() == {} and cache.total_stats() == NamespaceStats()


names = st.sampled_from(["a", "b", "c", "d", OTHER_NAMESPACES])
amounts = st.integers(1, 5)


@given(st.lists(st.tuples(st.sampled_from(["look", "store", "evict", "flush"]), names, amounts)))
def test_forgetting_namespaces_changes_no_total(events):
    table, exact = NamespaceTable(max_namespaces=2), NamespaceTable()
    cached = dict.fromkeys("abcd", 0) | {OTHER_NAMESPACES: 0}
    for event, name, amount in events:
        taken = min(amount, cached[name])
        for each in (table, exact):
            if event == "look":
                each.looked_up(name, amount - 1, 1)
            elif event == "store":
                each.stored(name, amount)
            elif taken:
                if event == "evict":
                    each.evicted(name, taken, whole_node=True)
                else:
                    each.flushed(name, taken)
        cached[name] += amount if event == "store" else -taken if event in ("evict", "flush") else 0
        stats = table.stats()
        assert len(stats) <= 3
        assert table.total() == exact.total() == NamespaceStats.sum([NamespaceStats(), *stats.values()])
        assert table.total().cached_pages == sum(cached.values())
        for known, pages in stats.items():
            assert known == OTHER_NAMESPACES or pages.cached_pages == cached[known]


def test_the_namespace_active_longest_ago_is_forgotten_first():
    table = NamespaceTable(max_namespaces=2)
    table.looked_up("old", 0, 7)
    table.looked_up("busy", 0, 1)
    table.looked_up("old", 3, 0)
    table.looked_up("new", 0, 1)
    assert sorted(table.stats()) == ["new", "old", OTHER_NAMESPACES]
    assert table.stats()[OTHER_NAMESPACES].miss_tokens == 1


def test_pages_of_forgotten_namespaces_are_reported_together():
    pool = PagePool(2000, 1)
    cache = RadixCache(pool)
    for name in range(1500):
        cache.insert(str(name), ids(1), pool.allocate(1))
    stats = cache.stats()
    assert len(stats) == 1025 and stats[OTHER_NAMESPACES].cached_pages == 476
    assert cache.evict(1500) == 1500
    assert sum(entry.cached_pages for entry in cache.stats().values()) == 0
