import numpy as np
import pytest

from rhizome_engine.kvcache.eviction import (
    EVICTION_POLICIES,
    FifoPolicy,
    LazyHeapPolicy,
    LfuPolicy,
    LruPolicy,
    eviction_policy,
)
from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache


def ids(*tokens):
    return np.array(tokens, np.int32)


class CheapestFirst(LazyHeapPolicy):
    def key(self, node):
        return node.uses / len(node.pages)


class MostRecentlyUsed(LazyHeapPolicy):
    def key(self, node):
        return -node.last_use


class ChoosesBranches(LruPolicy):
    def victim(self):
        return next((node for node in self._nodes if node.children), None)


class NoVictims:
    def add(self, node): ...

    remove = touch = cut = add


def not_makeable():
    raise OSError("no weights file")


class Tree:
    """A cache whose pages hold one token each."""

    def __init__(self, policy, num_pages=16):
        self.pool = PagePool(num_pages, 1)
        self.policy = policy
        self.cache = RadixCache(self.pool, policy)

    def put(self, *tokens, namespace=""):
        inserted = self.cache.insert(namespace, ids(*tokens), self.pool.allocate(len(tokens)))
        self.pool.free(inserted.duplicates)
        return inserted.node

    def find(self, *tokens):
        return self.cache.match("", ids(*tokens)).node

    def evict(self):
        """The last token of the prefix that was cut short."""
        (token,) = self.policy.victim().key[-1:]
        assert self.cache.evict(1) == 1
        return int(token)


def test_lfu_evicts_what_was_found_least_often_and_among_equals_the_oldest():
    tree = Tree(LfuPolicy())
    for token in (1, 2, 3):
        tree.put(token)
    for token in (1, 1, 3, 2):
        tree.find(token)
    assert [tree.evict() for _ in range(3)] == [3, 2, 1]


def test_lfu_counts_what_happens_to_a_locked_prefix():
    tree = Tree(LfuPolicy())
    system_prompt = tree.put(1)
    tree.cache.lock(system_prompt)
    tree.find(1)
    tree.find(1)
    tree.put(2)
    tree.find(2)
    tree.cache.unlock(system_prompt)
    assert [tree.evict() for _ in range(2)] == [2, 1]


def test_lfu_computing_a_prefix_again_is_no_lookup():
    tree = Tree(LfuPolicy())
    tree.put(1)
    tree.put(2)
    tree.put(1)
    tree.put(1)
    tree.find(2)
    assert [tree.evict() for _ in range(2)] == [1, 2]


def test_lfu_counts_of_ancestors_are_never_below_those_of_descendants():
    tree = Tree(LfuPolicy(max_uses=4))
    long = tree.put(1, 2, 3, 4)
    tree.find(1, 2, 3, 4)
    tree.cache.lock(long)
    tree.find(1, 2)  # splits while locked
    tree.put(1, 2, 5, 6)
    tree.find(1, 2, 5, 6)
    tree.find(1, 2, 5)
    tree.cache.unlock(long)
    assert [node.uses for node in long.path_to_root()] == [2, 5]
    for node in tree.cache.nodes():
        assert node.parent.parent is None or node.uses <= node.parent.uses
    order = [tree.evict() for _ in range(6)]
    assert order == [6, 4, 3, 5, 2, 1]


def test_lfu_treats_prefixes_above_the_limit_as_equals():
    tree = Tree(LfuPolicy(max_uses=3))
    tree.put(1)
    tree.put(2)
    for token in (1, 1, 1, 1, 1, 2, 2):
        tree.find(token)
    assert [tree.evict() for _ in range(2)] == [1, 2]


def test_fifo_evicts_in_order_of_insertion_whatever_is_used_or_locked():
    tree = Tree(FifoPolicy())
    first = tree.put(1)
    tree.put(2)
    tree.cache.lock(first)
    tree.find(1)
    assert tree.policy.victim().key.tolist() == [2]
    tree.cache.unlock(first)
    assert [tree.evict() for _ in range(2)] == [1, 2]


def test_fifo_keeps_a_parent_until_its_latest_child_went():
    tree = Tree(FifoPolicy())
    tree.put(1, 2)
    tree.put(3)
    tree.put(1, 4)  # splits; the trunk [1] stays as old as it was
    tree.put(5)
    assert [tree.evict() for _ in range(5)] == [2, 3, 4, 1, 5]


def test_a_parent_becomes_a_candidate_when_a_flush_took_its_children():
    tree = Tree(FifoPolicy())
    trunk = tree.put(1)
    tree.put(1, 2)
    tree.cache.lock(trunk)
    assert tree.cache.clear() == 1
    assert tree.policy.victim() is None
    tree.cache.unlock(trunk)
    assert tree.policy.victim() is trunk


def test_a_policy_of_ones_own_needs_only_a_key():
    tree = Tree(eviction_policy(f"{__name__}:CheapestFirst"))
    tree.put(1)
    tree.put(2, 3, 4)
    tree.find(1)
    assert [tree.evict() for _ in range(4)] == [4, 3, 2, 1]


@pytest.mark.parametrize("policy", [CheapestFirst, MostRecentlyUsed])
def test_a_heap_stays_small_under_endless_touching(policy):
    tree = Tree(policy(), num_pages=100)
    for token in range(100):
        tree.put(token)
    largest = 0
    for _ in range(50):
        for token in range(100):
            tree.find(token)
            largest = max(largest, len(tree.policy))
    assert largest <= 2 * 100 + 64
    assert tree.cache.evict(100) == 100
    assert tree.policy.victim() is None and len(tree.policy) == 0


@pytest.mark.parametrize("name", EVICTION_POLICIES)
def test_policies_have_names(name):
    tree = Tree(eviction_policy(name))
    tree.put(1)
    assert tree.evict() == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("random", "'random' is neither package.module:factory nor one of fifo, lfu, lru"),
        ("no_such_package.policies:Mine", "'no_such_package.policies:Mine' cannot be imported: No module"),
        ("heapq:Mine", "'heapq:Mine' cannot be imported: module 'heapq' has no attribute 'Mine'"),
        ("math:pi", "'math:pi' is a float, not a class or a function"),
        (f"{__name__}:NoVictims", "lacks the methods split, victim"),
        (f"{__name__}:not_makeable", "could not be made: no weights file"),
        ("rhizome_engine.kvcache.eviction:LazyHeapPolicy", "could not be made: .*abstract"),
    ],
)
def test_says_why_there_is_no_such_policy(name, message):
    with pytest.raises(ValueError, match=message):
        eviction_policy(name)


def test_a_policy_that_chooses_a_branch_is_found_out_before_it_does_harm():
    tree = Tree(ChoosesBranches())
    tree.put(1)
    tree.put(1, 2)
    with pytest.raises(RuntimeError, match="ChoosesBranches chose a node that is in use"):
        tree.cache.evict(1)
    assert tree.cache.evictable_pages == 2 and tree.pool.num_free == 14
