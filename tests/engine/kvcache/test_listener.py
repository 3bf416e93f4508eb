"""A second tier, in miniature: pages of "device memory" move to "host memory" when they are evicted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome_engine.kvcache.eviction import EVICTION_POLICIES, eviction_policy
from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache

PAGE_SIZE = 2


class HostTier:
    """Keeps evicted pages by the whole prefix that leads to them."""

    def __init__(self, device):
        self.device = device
        self.pages = {}
        self.calls = []

    def stored(self, node):
        self.calls.append(("stored", node.namespace, node.prefix_ids().tolist(), node.pages.tolist()))

    def removed(self, node, pages):
        token_ids = node.prefix_ids()
        self.calls.append(("removed", node.namespace, token_ids.tolist(), pages.tolist()))
        first = len(token_ids) // PAGE_SIZE - len(pages)
        for index, page in enumerate(pages, start=first + 1):
            prefix = (node.namespace, *token_ids[: index * PAGE_SIZE].tolist())
            assert prefix not in self.pages, "moved twice"
            self.pages[prefix] = self.device[page].copy()


class TwoTiers:
    def __init__(self, policy="lru", num_pages=32):
        self.pool = PagePool(num_pages, PAGE_SIZE)
        self.device = np.zeros(num_pages, np.int64)
        self.host = HostTier(self.device)
        self.cache = RadixCache(self.pool, eviction_policy(policy), [self.host])

    def compute(self, namespace, tokens):
        """What the model would do: a page's content depends on all tokens up to its end."""
        pages = self.pool.allocate(len(tokens) // PAGE_SIZE)
        for index, page in enumerate(pages, start=1):
            self.device[page] = hash((namespace, *tokens[: index * PAGE_SIZE]))
        token_ids = np.array(tokens, np.int32)
        self.pool.free(self.cache.insert(namespace, token_ids, pages).duplicates)


@pytest.mark.parametrize("policy", EVICTION_POLICIES)
@settings(deadline=None, max_examples=50)
@given(
    prompts=st.lists(
        st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 1), min_size=1, max_size=4)), max_size=8
    ),
    count=st.integers(1, 5),
)
def test_every_page_reaches_the_host_once_with_its_prefix_and_content(policy, prompts, count):
    tiers = TwoTiers(policy)
    computed = set()
    for namespace, symbols in prompts:
        tokens = [token for symbol in symbols for token in (symbol, symbol + 5)]
        tiers.compute(namespace, tokens)
        ends = range(PAGE_SIZE, len(tokens) + 1, PAGE_SIZE)
        computed |= {(namespace, *tokens[:end]) for end in ends}
    while tiers.cache.evict(count):
        pass
    assert tiers.pool.num_free == tiers.pool.num_pages
    assert tiers.host.pages == {prefix: hash(prefix) for prefix in computed}


def test_tells_what_came_and_what_went_under_its_whole_prefix():
    tiers = TwoTiers()
    tiers.compute("a", [1, 2, 3, 4])
    tiers.compute("a", [1, 2, 3, 4, 5, 6])
    tiers.compute("a", [1, 2])
    trunk, middle, tip = tiers.cache.match("a", np.array([1, 2, 3, 4, 5, 6], np.int32)).pages.tolist()
    tiers.cache.evict(1)
    tiers.cache.clear("a")
    assert tiers.host.calls == [
        ("stored", "a", [1, 2, 3, 4], [trunk, middle]),
        ("stored", "a", [1, 2, 3, 4, 5, 6], [tip]),
        ("removed", "a", [1, 2, 3, 4, 5, 6], [tip]),
        ("removed", "a", [1, 2, 3, 4], [middle]),
        ("removed", "a", [1, 2], [trunk]),
    ]


def test_nobody_hears_of_lookups_locks_and_splits():
    tiers = TwoTiers()
    tiers.compute("a", [1, 2, 3, 4])
    before = list(tiers.host.calls)
    match = tiers.cache.match("a", np.array([1, 2], np.int32))
    tiers.cache.lock(match.node)
    tiers.cache.unlock(match.node)
    tiers.cache.peek("a", np.array([1, 2, 3], np.int32))
    assert tiers.host.calls == before
