import numpy as np
import pytest

from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache


def ids(*tokens):
    return np.array(tokens, np.int32)


@pytest.fixture
def pool():
    return PagePool(16, 2)


@pytest.fixture
def cache(pool):
    return RadixCache(pool)


def put(cache, pool, *tokens, namespace=""):
    pages = pool.allocate(len(tokens) // 2)
    pool.free(cache.insert(namespace, ids(*tokens), pages).duplicates)
    return pages


def test_an_empty_cache_matches_nothing(cache):
    match = cache.match("", ids(1, 2, 3))
    assert match.pages.tolist() == [] and match.partial is None and match.partial_tokens == 0
    assert cache.num_nodes == 0


def test_a_prefix_that_ends_inside_a_node_splits_it_and_keeps_the_locks(cache, pool):
    pages = put(cache, pool, 1, 2, 3, 4, 5, 6)
    lower = cache.match("", ids(1, 2, 3, 4, 5, 6)).node
    cache.lock(lower)
    match = cache.match("", ids(1, 2, 3, 4, 9, 9))
    assert match.pages.tolist() == pages[:2].tolist()
    assert match.node is lower.parent and match.node.lock_ref == lower.lock_ref == 1
    assert cache.evict(10) == 0
    cache.unlock(lower)
    assert cache.evict(10) == 3 and pool.num_free == 16


def test_hits_are_exact_to_the_token_through_the_partial_page(cache, pool):
    pages = put(cache, pool, 1, 2, 3, 4)
    match = cache.match("", ids(1, 2, 3))
    assert match.pages.tolist() == pages[:1].tolist()
    assert match.partial is not None and match.partial_tokens == 1
    assert match.partial.pages.tolist() == pages[1:].tolist()


def test_namespaces_never_see_each_other(cache, pool):
    put(cache, pool, 1, 2, 3, 4, namespace="tenant-a")
    assert len(cache.match("tenant-a", ids(1, 2, 3, 4)).pages) == 2
    match = cache.match("tenant-b", ids(1, 2, 3, 4))
    assert len(match.pages) == 0 and match.partial is None


def test_pages_already_known_come_back_as_duplicates(cache, pool):
    first = put(cache, pool, 1, 2, 3, 4)
    second = pool.allocate(3)
    inserted = cache.insert("", ids(1, 2, 3, 4, 5, 6), second)
    assert inserted.duplicates.tolist() == second[:2].tolist()
    assert inserted.pages.tolist() == [*first, second[2]]


def test_evicts_the_oldest_leaf_first_and_parents_after_their_children(cache, pool):
    trunk = put(cache, pool, 1, 1)
    old = put(cache, pool, 1, 1, 2, 2)[1]
    new = put(cache, pool, 1, 1, 3, 3)[1]
    cache.match("", ids(1, 1, 2, 2))  # now the other one is older
    order = []
    for _ in range(3):
        before = set(pool.free_pages.tolist())
        assert cache.evict(1) == 1
        order += set(pool.free_pages.tolist()) - before
    assert order == [new, old, *trunk]
    assert cache.num_nodes == 0


def test_a_long_leaf_is_cut_from_its_tail(cache, pool):
    pages = put(cache, pool, *range(12))
    assert cache.evict(2) == 2
    assert cache.match("", ids(*range(12))).pages.tolist() == pages[:4].tolist()


def test_clear_drops_one_namespace_and_spares_what_is_in_use(cache, pool):
    put(cache, pool, 1, 2, namespace="a")
    put(cache, pool, 1, 2, 3, 4, namespace="b")
    held = cache.match("b", ids(1, 2)).node
    cache.lock(held)
    assert cache.clear("b") == 1
    assert cache.clear() == 1
    cache.unlock(held)
    assert cache.clear() == 1 and pool.num_free == 16


def test_insert_refuses_tokens_that_do_not_fill_their_pages(cache, pool):
    with pytest.raises(ValueError, match="do not fill"):
        cache.insert("", ids(1, 2, 3), pool.allocate(2))


def test_a_namespace_without_pages_leaves_nothing_behind(cache, pool):
    put(cache, pool, 1, 2, namespace="a")
    cache.evict(1)
    cache.match("b", ids(1, 2))
    assert cache._roots == {}
