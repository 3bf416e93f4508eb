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


def test_peek_finds_what_match_would_and_changes_nothing(cache, pool):
    put(cache, pool, 1, 2, 3, 4, 5, 6)
    put(cache, pool, 7, 8)
    prompts = [(1, 2, 3, 4, 5, 6, 9), (1, 2, 3, 9), (1, 9), (9,), (), (1, 2, 3, 4), (7, 8, 1)]
    found = [cache.peek("", ids(*prompt)) for prompt in prompts]
    assert found == [6, 3, 1, 0, 0, 4, 2] and cache.peek("elsewhere", ids(1, 2)) == 0
    assert cache.num_nodes == 2
    assert [node.uses for node in cache.nodes()] == [1, 1]
    cache.evict(1)
    assert cache.peek("", ids(1, 2, 3, 4, 5, 6)) == 4  # the first one is still the oldest
    for prompt in prompts:
        match = cache.match("", ids(*prompt))
        assert cache.peek("", ids(*prompt)) == 2 * len(match.pages) + match.partial_tokens


def test_the_version_changes_only_when_matches_may(cache, pool):
    versions = [cache.version]

    def changed():
        versions.append(cache.version)
        return versions[-1] != versions[-2]

    put(cache, pool, 1, 2, 3, 4)
    assert changed()
    put(cache, pool, 1, 2, 3, 4)
    node = cache.match("", ids(1, 2)).node
    cache.lock(node)
    cache.unlock(node)
    cache.peek("", ids(1, 2, 3))
    assert not changed()
    cache.evict(1)
    assert changed()
    cache.clear()
    assert changed()
    assert cache.clear() == cache.evict(1) == 0 and not changed()
    assert len(set(versions)) == 4


def test_a_prefix_that_was_cut_can_grow_again(cache, pool):
    put(cache, pool, *range(8))
    cache.evict(2)
    grown = put(cache, pool, *range(4), 4, 5, 9, 9)
    match = cache.match("", ids(*range(8)))
    assert match.pages.tolist()[2:] == grown[2:3].tolist() and match.partial is None
    assert cache.peek("", ids(*range(4), 4, 5, 9, 9)) == 8


def test_a_miss_among_very_many_prefixes_copies_nothing_of_the_prompt(pool):
    pool = PagePool(3000, 1)
    cache = RadixCache(pool)
    for token in range(3000):
        cache.insert("", ids(token), pool.allocate(1))

    class Prompt(np.ndarray):
        copied = 0

        def tobytes(self, *args):
            Prompt.copied += len(self)
            return super().tobytes(*args)

    prompt = np.arange(5000, 37768, dtype=np.int32).view(Prompt)
    assert cache.match("", prompt).pages.tolist() == []
    assert Prompt.copied <= 2
