"""Both tiers together: every page in one place, what comes back is what was stored, whatever the order.

Pages here hold the prefix that they end. Copies are done as steps do them: in their order, some time after
they were decided, before anything is written.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from tests.engine.kvcache.test_radix_properties import Mirror

from rhizome_engine.kvcache import host_tier
from rhizome_engine.kvcache.eviction import FifoPolicy, LfuPolicy, LruPolicy
from rhizome_engine.kvcache.host_tier import HostTier
from rhizome_engine.kvcache.page_copies import PageCopies
from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache, UseClock
from rhizome_engine.kvcache.sequence_pages import SequencePages

SIZE = 2
NUM_PAGES = 8
MAX_TOKENS = 20
namespaces = st.sampled_from(["", "", "tenant"])
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=12)


class Sequence:
    """A request: its tokens, its pages, and how far they are computed."""

    def __init__(self, tiers, namespace, tokens):
        self.tokens, self.namespace = np.array(tokens, np.int32), namespace
        self.pages = SequencePages(
            tiers.pool, tiers.cache, namespace, np.zeros(MAX_TOKENS // SIZE, np.int32), tiers.host
        )
        self.computed = self.pages.attach(self.tokens, tiers.copies.add_one, 0)
        self.is_open = self.computed is not None


class Tiers:
    """Two tiers and what their pages hold: by page number, what each slot is the end of."""

    def __init__(self, num_host_pages, policy=LruPolicy, listeners=()):
        self.pool, self.copies, clock = PagePool(NUM_PAGES, SIZE), PageCopies(), UseClock()
        self.mirror = Mirror(self.pool)
        self.host = HostTier(num_host_pages, SIZE, NUM_PAGES, self.copies, clock, [self.mirror, *listeners])
        self.device_mirror = Mirror(self.pool)
        heard = [self.host, self.device_mirror, *listeners]
        self.cache = RadixCache(self.pool, policy(), heard, clock)
        self.slots = np.empty((NUM_PAGES + num_host_pages, SIZE), object)
        self.running = []
        self.unread = []

    def start(self, namespace, tokens):
        sequence = Sequence(self, namespace, tokens)
        if sequence.is_open:
            self.running.append(sequence)
            self.unread.append(sequence)
        return sequence

    def run(self):
        """Do the copies of a step, and read it."""
        for sources, targets, num_slots in self.copies.take():
            kept = self.slots[sources, :num_slots]
            self.slots[targets] = "garbage"
            self.slots[targets, :num_slots] = kept
        for sequence in self.unread:
            sequence.pages.are_loading = False
        self.unread.clear()

    def compute(self, sequence, count):
        """Write tokens, after what was found was checked."""
        self.run()
        end = min(sequence.computed + count, len(sequence.tokens))
        if not sequence.pages.reserve(end):
            return
        self.run()
        places = [(int(sequence.pages.pages[p // SIZE]), p % SIZE) for p in range(end)]
        for position, place in enumerate(places):
            if position >= sequence.computed:
                self.slots[place] = (sequence.namespace, *sequence.tokens[: position + 1].tolist())
            assert self.slots[place] == (sequence.namespace, *sequence.tokens[: position + 1].tolist())
        sequence.computed = end

    def finish(self, sequence, *, keep=True):
        self.running.remove(sequence)
        sequence.pages.release(sequence.tokens[: sequence.computed if keep else 0])

    def answer(self, namespace, tokens):
        """Compute a prompt; how many of its tokens needed no computing."""
        sequence = self.start(namespace, tokens)
        found = sequence.computed
        self.compute(sequence, len(tokens))
        assert sequence.computed == len(tokens)
        self.finish(sequence)
        return found

    def check(self):
        held = [*self.host.pool.free_pages.tolist(), *self.mirror.values()]
        assert sorted(held) == list(range(NUM_PAGES, len(self.slots)))
        assert self.host.cache.protected_pages == 0
        own = [page for sequence in self.running for page in sequence.pages.own_pages.tolist()]
        held = [*self.pool.free_pages.tolist(), *self.device_mirror.values(), *own]
        assert sorted(held) == list(range(NUM_PAGES))
        for mirror in (self.mirror, self.device_mirror):
            assert all(key[:-SIZE] in mirror or len(key) == SIZE + 1 for key in mirror), "a hole"


class TiersMachine(stateful.RuleBasedStateMachine):
    num_host_pages = 6

    def __init__(self):
        super().__init__()
        self.tiers = Tiers(self.num_host_pages, self.policy, self.listeners())

    def listeners(self):
        return []

    @rule(namespace=namespaces, tokens=prompts)
    def start_one(self, namespace, tokens):
        known = [self.tiers.cache.peek(namespace, np.array(tokens[:-1], np.int32))]
        known.append(self.tiers.host.cache.peek(namespace, np.array(tokens[:-1], np.int32)))
        sequence = self.tiers.start(namespace, tokens)
        # A copy within the device may lack its page; what the host has never does.
        assert not sequence.is_open or known[1] <= sequence.computed <= max(known)

    @precondition(lambda self: self.tiers.running)
    @rule(data=st.data(), count=st.integers(1, 12))
    def compute(self, data, count):
        self.tiers.compute(data.draw(st.sampled_from(self.tiers.running)), count)

    @precondition(lambda self: self.tiers.running)
    @rule(data=st.data(), keep=st.booleans())
    def finish(self, data, keep):
        self.tiers.finish(data.draw(st.sampled_from(self.tiers.running)), keep=keep)

    @rule(namespace=namespaces, tokens=prompts)
    def answer(self, namespace, tokens):
        if len(tokens) // SIZE + 1 <= self.tiers.pool.num_free + self.tiers.cache.evictable_pages:
            self.tiers.answer(namespace, tokens)

    @rule(count=st.integers(1, 4))
    def evict(self, count):
        before = set(self.tiers.device_mirror)
        has_room = self.tiers.host.pool.num_free >= len(before)
        self.tiers.cache.evict(count)
        gone = before - self.tiers.device_mirror.keys()
        assert gone <= self.tiers.mirror.keys() or not has_room

    @rule(namespace=st.one_of(st.none(), namespaces))
    def flush(self, namespace):
        saved = self.tiers.host.saved_tokens
        self.tiers.host.flush(self.tiers.cache, namespace)
        assert self.tiers.host.saved_tokens == saved
        assert not [key for key in self.tiers.mirror if namespace in (None, key[0])]
        nodes = self.tiers.cache.nodes(namespace)
        assert all(node.lock_ref for node in nodes)

    @rule()
    def forget(self):
        self.tiers.host.cache.clear()
        for sequence in [one for one in self.tiers.running if one.pages.are_loading]:
            self.tiers.finish(sequence)

    @rule()
    def run_copies(self):
        self.tiers.run()

    @invariant()
    def pages_are_in_one_place_and_nothing_has_holes(self):
        self.tiers.check()

    @invariant()
    def cached_pages_hold_what_their_tokens_say_once_copies_are_done(self):
        slots = self.tiers.slots.copy()
        for sources, targets, num_slots in self.tiers.copies._copies:
            kept = slots[sources, :num_slots]
            slots[targets] = "garbage"
            slots[targets, :num_slots] = kept
        for mirror in (self.tiers.mirror, self.tiers.device_mirror):
            for key, page in mirror.items():
                assert slots[page].tolist() == [key[: len(key) - 1], key]


@pytest.mark.parametrize("num_host_pages", [1, 6, 24])
@pytest.mark.parametrize("policy", [LruPolicy, LfuPolicy, FifoPolicy])
def test_any_order_of_everything(policy, num_host_pages):
    machine = type(
        "Machine", (TiersMachine,), {"policy": staticmethod(policy), "num_host_pages": num_host_pages}
    )
    stateful.run_state_machine_as_test(
        machine,
        settings=settings(max_examples=40, stateful_step_count=40, deadline=None, derandomize=True),
    )


def conversation(number, length):
    return [100 * number + place for place in range(length)]


def test_what_had_to_leave_comes_back_whole():
    tiers = Tiers(24)
    prompts_ = [conversation(number, 10) for number in range(4)]  # 5 pages each, 8 on the device
    assert [tiers.answer("", prompt) for prompt in prompts_] == [0, 0, 0, 0]
    assert [tiers.answer("", prompt) for prompt in prompts_] == [9, 9, 9, 9]
    stats = tiers.host.cache.stats()[""]
    assert (stats.lookups_hit, stats.hit_tokens) == (4, tiers.host.loaded_tokens)
    assert tiers.host.saved_tokens == 20 * SIZE, "what came back is saved once"


def test_a_beginning_that_others_still_use_is_saved_with_the_first_end_that_goes():
    tiers = Tiers(24)
    sequence = tiers.start("", [1, 2, 3, 4, 5, 6])
    tiers.compute(sequence, 6)
    tiers.finish(sequence)
    reader = tiers.start("", [1, 2, 3, 9])
    tiers.cache.evict(1)
    assert {key[1:] for key in tiers.mirror} == {(1, 2), (1, 2, 3, 4), (1, 2, 3, 4, 5, 6)}
    assert tiers.host.saved_tokens == 6
    tiers.cache.evict(1)
    assert tiers.host.saved_tokens == 6
    tiers.finish(reader, keep=False)


def test_where_too_few_pages_fit_the_beginning_stays():
    tiers = Tiers(3)
    tiers.answer("", conversation(1, 12))
    tiers.cache.evict(6)
    tiers.run()
    assert sorted(len(key) - 1 for key in tiers.mirror) == [2, 4, 6]
    assert tiers.answer("", conversation(1, 12)) == 6


def test_the_longest_unused_leaves_the_host_first():
    tiers = Tiers(10)
    for number in (1, 2):
        tiers.answer("", conversation(number, 10))
        tiers.cache.evict(8)
    tiers.answer("", conversation(1, 10))
    tiers.cache.evict(8)
    tiers.answer("", conversation(3, 4))
    tiers.cache.evict(8)
    assert {key[1] // 100 for key in tiers.mirror} == {1, 2, 3}
    assert len([key for key in tiers.mirror if key[1] // 100 == 2]) == 3


def test_a_page_that_matches_in_part_comes_back_too():
    tiers = Tiers(24)
    tiers.answer("", [1, 2, 3, 4])
    tiers.cache.evict(8)
    tiers.run()
    assert tiers.answer("", [1, 2, 3, 9, 9]) == 3


def test_what_is_loaded_and_not_there_yet_is_shared_with_nobody():
    tiers = Tiers(24)
    tiers.answer("", conversation(1, 8))
    tiers.cache.evict(8)
    sequence = tiers.start("", conversation(1, 8))
    assert sequence.computed == 7 and sequence.pages.are_loading
    tiers.finish(sequence)
    assert not tiers.device_mirror
    assert tiers.answer("", conversation(1, 8)) == 7


def test_a_page_may_be_saved_overwritten_and_saved_again_before_any_copy_is_done():
    tiers = Tiers(24)
    for number in (1, 2, 3):
        tiers.answer("", conversation(number, 12))
    first = tiers.start("", conversation(1, 12))  # its pages are those that 3 has to leave now
    tiers.finish(first, keep=False)
    second = tiers.start("", conversation(2, 12))
    tiers.compute(second, 12)
    tiers.finish(second)
    assert tiers.answer("", conversation(3, 12)) == 11


def test_what_is_about_to_come_back_is_not_overwritten_by_what_leaves_for_it():
    tiers = Tiers(4)
    tiers.answer("", conversation(1, 8))
    tiers.cache.evict(8)
    tiers.answer("", conversation(2, 16))  # the whole pool
    assert tiers.answer("", conversation(1, 8)) == 7


def test_namespaces_find_nothing_of_each_other():
    tiers = Tiers(24)
    tiers.answer("a", conversation(1, 8))
    tiers.cache.evict(8)
    assert tiers.answer("b", conversation(1, 8)) == 0
    assert tiers.answer("a", conversation(1, 8)) == 7


def test_pages_that_are_saved_together_follow_one_another():
    tiers = Tiers(6)
    tiers.answer("", [1, 2, 3, 4, 5, 6])
    tiers.cache.evict(8)
    (copy,) = tiers.copies.take()
    assert copy.targets.tolist() == [NUM_PAGES, NUM_PAGES + 1, NUM_PAGES + 2]


def test_a_prompt_that_is_longer_than_the_tier_does_not_empty_it():
    tiers = Tiers(2)
    tiers.answer("", [7, 8])
    tiers.cache.evict(8)
    tiers.run()
    tiers.answer("", [1, 2, 3, 4, 5, 6])
    tiers.cache.evict(1)  # its last page would be the third here
    assert tiers.copies.take() == [] and tiers.host.cache.peek("", np.array([7, 8], np.int32)) == 2


def test_only_who_lacks_something_asks_the_tier():
    tiers = Tiers(6)
    for _ in range(3):
        tiers.answer("", [1, 2, 3, 4, 5])
    tiers.cache.evict(8)
    tiers.answer("", [1, 2, 3, 4, 5])
    stats = tiers.host.cache.total_stats()
    assert (stats.lookups_hit, stats.hit_tokens, stats.lookups_missed, stats.miss_tokens) == (1, 4, 1, 4)


def test_of_a_long_path_a_part_is_saved_at_a_time(monkeypatch):
    monkeypatch.setattr(host_tier, "_MOST_SAVED_TOKENS", 2 * SIZE)
    tiers = Tiers(6)
    tiers.answer("", list(range(8)))
    for expected in ([0, 1], [2], []):
        tiers.cache.evict(1)
        saved = [page for copy in tiers.copies.take() for page in (copy.targets - NUM_PAGES).tolist()]
        assert saved == expected
