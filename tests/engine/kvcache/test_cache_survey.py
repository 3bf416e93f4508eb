"""What is shown of the cache is a tree of the nodes used last, and looking changes nothing."""

import random

import numpy as np
import pytest

from rhizome_engine.kvcache.cache_survey import CacheSurvey
from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.pins import PinnedPrefixes
from rhizome_engine.kvcache.radix_cache import RadixCache


class Surveying:
    """A cache of two-token pages that prompts are put into."""

    def __init__(self, num_pages=256):
        self.pool = PagePool(num_pages, 2)
        self.cache = RadixCache(self.pool)
        self.pins = PinnedPrefixes(self.cache, 2, num_pages, lambda: 0.0)
        self.survey = CacheSurvey(self.cache, self.pins)

    def put(self, *tokens, namespace=""):
        token_ids = np.array(tokens, np.int32)
        pages = self.pool.allocate(len(tokens) // 2)
        self.pool.free(self.cache.insert(namespace, token_ids, pages).duplicates)

    def runs(self, most=100, namespace=None):
        found = self.survey.newest(most, namespace)
        return {name: [node.key.tolist() for node in nodes] for name, nodes in found.nodes.items()}


@pytest.fixture
def surveying():
    return Surveying()


def test_namespaces_are_told_apart_and_a_tenants_salted_ones_are_its_own(surveying):
    surveying.put(1, 2, namespace="b")
    surveying.put(3, 4, namespace="a#salt")
    surveying.put(5, 6, namespace="a")
    surveying.put(7, 8, namespace="ab")
    assert surveying.runs() == {"a": [[5, 6]], "a#salt": [[3, 4]], "ab": [[7, 8]], "b": [[1, 2]]}
    assert surveying.runs(namespace="a") == {"a": [[5, 6]], "a#salt": [[3, 4]]}
    assert surveying.runs(namespace="nobody") == {}


def test_the_nodes_used_last_come_first_with_all_that_is_above_them(surveying):
    surveying.put(1, 2, 3, 4)
    surveying.put(1, 2, 5, 6)
    surveying.put(7, 8)
    surveying.cache.match("", np.array([1, 2, 3, 4], np.int32))
    assert surveying.runs(2) == {"": [[1, 2], [3, 4]]}
    found = surveying.survey.newest(2)
    assert found.truncated and found.now - found.nodes[""][0].last_use == 0
    assert not surveying.survey.newest(4).truncated
    assert surveying.survey.newest(0).truncated


def test_pins_are_told(surveying):
    surveying.put(1, 2, 3, 4)
    surveying.pins.pin("", np.array([1, 2], np.int32))
    nodes = surveying.survey.newest(10).nodes[""]
    assert [(node.key.tolist(), surveying.survey.pinned(node), node.lock_ref) for node in nodes] == [
        ([1, 2], True, 1),
        ([3, 4], False, 0),
    ]


def test_any_part_of_any_tree_is_a_tree_and_looking_changes_nothing(surveying):
    draw = random.Random(5)
    for _ in range(60):
        surveying.put(
            *(draw.randrange(3) for _ in range(2 * draw.randint(1, 5))), namespace=draw.choice("ab")
        )
        surveying.cache.match(draw.choice("ab"), np.array([draw.randrange(3) for _ in range(6)], np.int32))
    before = [(node.last_use, node.uses, node.lock_ref) for node in surveying.cache.nodes()]
    total = surveying.cache.num_nodes
    for most in (1, 2, 5, 17, total - 1, total, total + 5):
        found = surveying.survey.newest(most)
        taken = [node for nodes in found.nodes.values() for node in nodes]
        assert len(taken) == min(most, total) and found.truncated == (most < total)
        known = set()
        for node in taken:
            assert node.parent.parent is None or id(node.parent) in known
            known.add(id(node))
        oldest = min(node.last_use for node in taken)
        assert all(node.last_use <= oldest for node in surveying.cache.nodes() if id(node) not in known)
    assert [(node.last_use, node.uses, node.lock_ref) for node in surveying.cache.nodes()] == before
