"""A block is cached as long as a tier has it: what readers know of both, after every operation on them."""

from __future__ import annotations

from hypothesis import settings, stateful
from hypothesis.stateful import invariant
from tests.engine.core.test_kv_event_log import Reader, TokenReader, block_of
from tests.engine.kvcache.test_host_tier import NUM_PAGES, SIZE, Tiers, TiersMachine, conversation

from rhizome.engine.v1.engine_service_pb2 import WatchKvEventsResponse
from rhizome_engine.core.kv_event_log import KvEventLog
from rhizome_engine.kvcache.eviction import LruPolicy


def nodes_of(tiers):
    yield from tiers.cache.nodes("")
    yield from tiers.host.cache.nodes("")


class EventsMachine(TiersMachine):
    policy = staticmethod(LruPolicy)
    num_host_pages = 6

    def listeners(self):
        pages = NUM_PAGES + self.num_host_pages
        self.log = KvEventLog(pages, SIZE, has_host=True, kept_bytes=250, first_sequence=7)
        self.reader, self.router, self.late = Reader(), TokenReader(SIZE), TokenReader(SIZE)
        return [self.log]

    @invariant()
    def readers_know_the_blocks_of_both_tiers(self):
        self.log.commit()
        keys = {*self.tiers.mirror, *self.tiers.device_mirror}
        self.reader.read(self.log, 1)
        assert self.reader.blocks == {block_of(key, SIZE) for key in keys}
        shared = {key[1:] for key in keys if not key[0]}
        snapshot = self.log.snapshot_with_token_ids(nodes_of(self.tiers))
        self.late.apply(WatchKvEventsResponse.FromString(snapshot))
        self.router.read(self.log, lambda: nodes_of(self.tiers))
        for reader in (self.router, self.late):
            assert {tuple(tokens) for tokens in reader.tokens.values()} == shared


def test_readers_know_what_either_tier_has():
    wanted = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)
    stateful.run_state_machine_as_test(EventsMachine, settings=wanted)


def test_a_block_is_removed_when_it_left_both_tiers():
    log = KvEventLog(NUM_PAGES + 4, SIZE, has_host=True, first_sequence=1)
    tiers = Tiers(4, listeners=[log])
    log.snapshot()

    def news(sequence):
        log.commit()
        return [WatchKvEventsResponse.FromString(one) for one in log.since(sequence, 9) or []]

    tiers.answer("", conversation(1, 8))
    (stored,) = news(2)
    assert len(stored.events[0].stored.block_hashes) == 4
    tiers.cache.evict(4)
    assert not news(3), "it is on the host"
    tiers.answer("", conversation(1, 8))
    assert not news(3), "it came back"
    tiers.answer("", conversation(2, 8))
    tiers.cache.evict(8)  # the host has room for one of them, and takes the later
    (last,) = news(3)
    assert {*last.events[1].removed.block_hashes} == {*stored.events[0].stored.block_hashes}
