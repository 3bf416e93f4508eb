"""Blocks that a reader knows from messages alone, against the radix tree, after every operation on it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from tests.engine.kvcache.test_radix_properties import NUM_PAGES, RadixCacheMachine

from rhizome.engine.v1.engine_service_pb2 import WatchKvEventsResponse
from rhizome_engine.core.kv_event_log import KvEventLog
from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache
from rhizome_transport.block_hashes import block_hashes
from rhizome_transport.kv_watch import stored_tokens

KEPT_BYTES = 250
"""Some three messages, so that readers miss some soon."""


@lru_cache(maxsize=100_000)
def block_of(key, page_size):
    """The hash of the block with which a prefix ends."""
    namespace, *tokens = key
    return int(block_hashes(tokens, page_size, namespace)[-1])


class Reader:
    """What a router does, and what it relies on."""

    def __init__(self):
        self.blocks = set()
        self.sequence = None
        self.snapshots = 0

    def read(self, log, limit):
        messages = None if self.sequence is None else log.since(self.sequence + 1, limit)
        if messages is None:
            self.snapshots += 1
            messages = [log.snapshot()]
            self.sequence = WatchKvEventsResponse.FromString(messages[0]).sequence - 1
        assert len(messages) <= limit
        for message in messages:
            self.apply(WatchKvEventsResponse.FromString(message))

    def apply(self, message):
        assert message.sequence == self.sequence + 1
        self.sequence = message.sequence
        is_snapshot = message.events[0].HasField("cleared")
        for event in message.events:
            if event.HasField("cleared"):
                self.blocks.clear()
            elif event.HasField("removed"):
                hashes = set(event.removed.block_hashes)
                assert hashes and hashes <= self.blocks
                self.blocks -= hashes
            else:
                hashes = event.stored.block_hashes
                assert len({*hashes}) == len(hashes) and not self.blocks.intersection(hashes)
                if event.stored.HasField("parent_hash"):
                    assert event.stored.parent_hash in self.blocks and not is_snapshot
                self.blocks.update(hashes)


class TokenReader:
    """A router of another make: it hashes tokens itself, and is told of one namespace."""

    def __init__(self, page_size):
        self.tokens = {}
        self.sequence = None
        self.page_size = page_size

    def read(self, log, nodes):
        known = None
        if self.sequence is not None:
            known = log.since(self.sequence + 1, 100, with_token_ids=True)
        for message in [log.snapshot_with_token_ids(nodes())] if known is None else known:
            self.apply(WatchKvEventsResponse.FromString(message))

    def apply(self, message):
        self.sequence = message.sequence
        for event in message.events:
            if event.HasField("cleared"):
                self.tokens.clear()
            for one in event.removed.block_hashes:
                del self.tokens[one]
            stored, size, tokens = event.stored, self.page_size, stored_tokens(event.stored)
            before = self.tokens[stored.parent_hash] if stored.HasField("parent_hash") else []
            assert len(tokens) == len(stored.block_hashes) * size
            for place, one in enumerate(stored.block_hashes):
                assert one not in self.tokens
                before = self.tokens[one] = [*before, *tokens[place * size : (place + 1) * size]]


class KvEventMachine(RadixCacheMachine):
    """The radix cache's own workload, one or several operations a step; three of four readers are slow."""

    policy_name = "lru"

    def listeners(self):
        self.log = KvEventLog(NUM_PAGES, self.size, kept_bytes=KEPT_BYTES, first_sequence=7)
        self.prompt = Reader()
        self.router = TokenReader(self.size)
        self.slow = [Reader() for _ in range(3)]
        self.history = {}
        self.steps_are_long = False
        return [self.mirror, self.log]

    @rule(steps_are_long=st.booleans())
    def change_pace(self, steps_are_long):
        self.steps_are_long = steps_are_long

    @invariant()
    def readers_hear_of_every_step(self):
        if self.steps_are_long:
            return
        self.log.commit()
        before = self.prompt.snapshots
        self.prompt.read(self.log, 1)
        assert self.prompt.blocks == {block_of(key, self.size) for key in self.brute.entries}
        self.router.read(self.log, lambda: self.cache.nodes(""))
        shared = {key[1:] for key in self.brute.entries if key[0] == ""}
        assert {tuple(tokens) for tokens in self.router.tokens.values()} == shared
        assert {*self.router.tokens} == {block_of(("", *tokens), self.size) for tokens in shared}
        assert self.prompt.snapshots == before or not before or not self.log.kept_bytes
        assert self.log.kept_bytes <= KEPT_BYTES
        self.history[self.log.sequence] = frozenset(self.prompt.blocks)

    @precondition(lambda self: not self.steps_are_long)
    @rule(which=st.integers(0, 2), limit=st.integers(1, 3))
    def read_slowly(self, which, limit):
        reader = self.slow[which]
        before = reader.sequence
        reader.read(self.log, limit)
        assert reader.blocks == self.history[reader.sequence]
        assert reader.sequence == self.log.sequence or reader.sequence == before + limit


@pytest.mark.parametrize("policy", ["lru", "largest_first"])
def test_a_reader_knows_the_cached_blocks_after_every_step(policy):
    machine = type("Machine", (KvEventMachine,), {"policy_name": policy})
    wanted = settings(max_examples=60, stateful_step_count=40, deadline=None)
    stateful.run_state_machine_as_test(machine, settings=wanted)


class Cache:
    """A radix cache with a log, and what is left of the engine around them."""

    def __init__(self, num_pages=64, **kept):
        self.pool = PagePool(num_pages, 4)
        self.log = KvEventLog(num_pages, 4, **kept)
        self.tree = RadixCache(self.pool, listeners=[self.log])

    def insert(self, tokens, namespace=""):
        ids = np.array(tokens, np.int32)
        pages = self.pool.allocate(len(ids) // 4)
        self.pool.free(self.tree.insert(namespace, ids, pages).duplicates)

    def news(self, sequence, limit=100):
        return [WatchKvEventsResponse.FromString(one) for one in self.log.since(sequence, limit) or []]


def test_nothing_is_collected_before_somebody_asks():
    cache = Cache(first_sequence=7)
    cache.insert(range(8))
    cache.log.commit()
    assert (cache.log.sequence, cache.log.kept_bytes) == (7, 0)
    assert cache.log.since(7, 1) is None and cache.log.since(8, 1) is None
    snapshot = WatchKvEventsResponse.FromString(cache.log.snapshot())
    assert snapshot.sequence == 7
    assert {*snapshot.events[1].stored.block_hashes} == {*block_hashes(range(8), 4, "").tolist()}
    assert cache.log.since(8, 1) == []
    assert cache.log.since(9, 1) is None, "nobody was given that number"


def test_all_changes_of_a_step_are_one_message():
    cache = Cache(first_sequence=1)
    cache.log.snapshot()
    cache.insert(range(8))
    cache.insert([0, 1, 2, 3, 9, 9, 9, 9], "tenant")
    cache.insert([0, 1, 2, 3, 9, 9, 9, 9])
    cache.tree.evict(1)
    cache.log.commit()
    cache.log.commit()
    (message,) = cache.news(2)
    first, tenant, split, removed = message.events
    a, b = block_hashes(range(8), 4, "").tolist()
    c = block_hashes([0, 1, 2, 3, 9, 9, 9, 9], 4, "").tolist()[1]
    assert not first.stored.HasField("parent_hash") and not tenant.stored.HasField("parent_hash")
    assert (list(first.stored.block_hashes), first.stored.block_size) == ([a, b], 4)
    assert (split.stored.parent_hash, list(split.stored.block_hashes)) == (a, [c])
    assert list(removed.removed.block_hashes) == [b]


def test_a_cache_that_was_emptied_is_cleared():
    cache = Cache(first_sequence=1)
    cache.log.snapshot()
    cache.insert(range(8))
    cache.insert(range(8), "tenant")
    cache.log.commit()
    cache.tree.clear("tenant")
    cache.log.commit()
    cache.insert(range(100, 108))
    cache.tree.clear()
    cache.log.commit()
    _, flushed, emptied = cache.news(2)
    assert {*flushed.events[0].removed.block_hashes} == {*block_hashes(range(8), 4, "tenant").tolist()}
    assert len(emptied.events) == 1 and emptied.events[0].HasField("cleared")


def test_a_change_larger_than_what_is_kept_is_told_by_a_snapshot():
    cache = Cache(kept_bytes=100)
    reader = Reader()
    reader.read(cache.log, 1)
    cache.insert(range(200))
    cache.log.commit()
    assert cache.log.kept_bytes == 0
    reader.read(cache.log, 1)
    assert reader.snapshots == 2
    assert reader.blocks == {*block_hashes(range(200), 4, "").tolist()}
    cache.insert(range(300, 304))
    cache.log.commit()
    reader.read(cache.log, 1)
    assert reader.snapshots == 2 and len(reader.blocks) == 51


def test_what_another_instance_told_is_not_continued():
    earlier = Cache()
    earlier.log.snapshot()
    for start in range(50):
        earlier.insert(range(start, start + 4))
        earlier.log.commit()
    later = Cache()
    later.log.snapshot()
    assert later.log.sequence > earlier.log.sequence
    assert later.log.since(earlier.log.sequence + 1, 1) is None
