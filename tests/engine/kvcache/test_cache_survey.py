"""What is shown of the cache is a tree of the nodes used last, and looking changes nothing."""

import random

import numpy as np
import pytest
from tests.engine.kvcache.test_host_tier import NUM_PAGES, SIZE, Tiers

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
        return {name: [part.key.tolist() for part in parts] for name, parts in found.parts.items()}


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
    assert found.truncated and found.now - found.parts[""][0].last_use == 0
    assert not surveying.survey.newest(4).truncated
    assert surveying.survey.newest(0).truncated


def test_pins_are_told(surveying):
    surveying.put(1, 2, 3, 4)
    surveying.pins.pin("", np.array([1, 2], np.int32))
    parts = surveying.survey.newest(10).parts[""]
    assert [(part.key.tolist(), surveying.survey.pinned(part), part.locks) for part in parts] == [
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
        taken = [part for parts in found.parts.values() for part in parts]
        assert len(taken) == min(most, total) and found.truncated == (most < total)
        known = set()
        for part in taken:
            node = part.device
            assert part.key is node.key or part.key.tolist() == node.key.tolist()
            assert part.parent.device is node.parent if part.parent else node.parent.parent is None
            assert node.parent.parent is None or id(node.parent) in known
            known.add(id(node))
        oldest = min(part.last_use for part in taken)
        assert all(node.last_use <= oldest for node in surveying.cache.nodes() if id(node) not in known)
    assert [(node.last_use, node.uses, node.lock_ref) for node in surveying.cache.nodes()] == before


def test_of_very_many_branches_those_used_last_are_shown(surveying):
    for first in range(200):
        surveying.put(first, 0)
    for first in (150, 3, 77):
        surveying.cache.match("", np.array([first, 0], np.int32))
    assert surveying.runs(3) == {"": [[77, 0], [3, 0], [150, 0]]}
    assert surveying.survey.newest(199).truncated
    assert len(surveying.survey.newest(200).parts[""]) == 200


class Union(Tiers):
    """Both tiers, looked at."""

    def __init__(self, num_host_pages):
        super().__init__(num_host_pages)
        self.pins = PinnedPrefixes(self.cache, SIZE, NUM_PAGES, lambda: 0.0)
        self.survey = CacheSurvey(self.cache, self.pins, self.host.cache)

    def nodes(self):
        return [*self.cache.nodes(), *self.host.cache.nodes()]


@pytest.mark.parametrize("seed", range(8))
def test_two_trees_are_shown_as_one_with_every_page_once(seed):
    draw = random.Random(seed)
    union = Union(draw.choice([5, 40]))
    for _ in range(60):
        tokens = [draw.randrange(2) for _ in range(draw.randint(2, 12))]
        union.answer(draw.choice(["", "", "tenant"]), tokens)
        union.cache.evict(draw.choice([0, 0, 1, 3]))
    before = [(node.last_use, node.uses) for node in union.nodes()]
    total = sum(map(len, union.survey.newest(1000).parts.values()))
    for most in (total, 1, 3, total - 1):
        found = union.survey.newest(most)
        taken = [part for parts in found.parts.values() for part in parts]
        assert len(taken) == most and found.truncated == (most < total)
        ends, known, ids = {}, set(), set()
        for part in taken:
            assert part.parent is None or id(part.parent) in known
            assert part.parent is None or part.parent.last_use >= part.last_use
            known.add(id(part))
            start = () if part.parent is None else ends[id(part.parent)]
            ends[id(part)] = (*start, *part.key.tolist())
            for end in range(len(start) + SIZE, len(ends[id(part)]) + 1, SIZE):
                key = (part.namespace, *ends[id(part)][:end])
                assert (key in union.device_mirror, key in union.mirror) == (
                    part.device is not None,
                    part.host is not None,
                )
                assert key not in ids
                ids.add(key)
            last = (part.namespace, *ends[id(part)])
            assert part.id == (union.device_mirror if part.device else union.mirror)[last]
        if most == total:
            assert ids == {*union.device_mirror, *union.mirror}
            assert {part.device is None for part in taken} == {True, False}
    assert before == [
        (node.last_use, node.uses) for node in (*union.cache.nodes(), *union.host.cache.nodes())
    ]


def test_a_branch_on_the_host_begins_where_it_does_although_the_device_has_one_run():
    union = Union(40)
    union.answer("", [1, 2, 3, 4, 5, 6])
    union.answer("", [1, 2, 3, 4, 7, 8])
    union.cache.evict(8)
    union.answer("", [1, 2, 3, 4, 5, 6, 0])
    parts = union.survey.newest(10).parts[""]
    shown = {
        tuple(part.key.tolist()): (part.parent and part.parent.key.tolist(), part.device is None)
        for part in parts
    }
    assert shown == {
        (1, 2, 3, 4): (None, False),
        (5, 6): ([1, 2, 3, 4], False),
        (7, 8): ([1, 2, 3, 4], True),
    }
