"""`SubscribeKvEvents`: changes of the prefix cache with their tokens, from our `WatchKvEvents`.

Every stream begins with a snapshot, whatever number its reader wants to go on with: `cleared`, and all that
is cached. The numbers go on from the reader's own without a gap. So there is nothing to remember between two
streams, nothing that a restart of front or core could mix up, and no reader is told a part only; it costs a
snapshot where another server would send again what was missed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from smg_grpc_proto.generated import common_pb2 as common

from rhizome.engine.v1.engine_service_pb2 import KvEvent, KvStored, WatchKvEventsResponse
from rhizome_transport.kv_watch import stored_tokens

_MOST_BLOCKS = 1024
"""In one message: readers take 4 MiB, and a block can have 256 tokens."""

_TWO_TO_63 = 1 << 63


class KvEventStream:
    """Numbers one reader's messages.

    Args:
        last_sequence: the last one that the reader knows; 0 for none.
    """

    def __init__(self, last_sequence: int) -> None:
        self._sequence = last_sequence

    def batches(self, message: WatchKvEventsResponse) -> Iterator[common.KvEventBatch]:
        """The messages that tell what one of ours tells."""
        batch: list[common.KvCacheEvent] = []
        blocks = 0
        for event in _events(message.events):
            blocks += len(event.stored.blocks) + len(event.removed.block_hashes)
            batch.append(event)
            if blocks >= _MOST_BLOCKS:
                yield self._number(batch)
                batch, blocks = [], 0
        if batch:
            yield self._number(batch)

    def _number(self, events: list[common.KvCacheEvent]) -> common.KvEventBatch:
        self._sequence += 1
        return common.KvEventBatch(sequence_number=self._sequence, timestamp=time.time(), events=events)


def _events(events: Iterable[KvEvent]) -> Iterator[common.KvCacheEvent]:
    for event in events:
        kind = event.WhichOneof("event")
        if kind == "stored":
            yield from _stored(event.stored)
        elif kind == "removed":
            hashes = [_signed(one) for one in event.removed.block_hashes]
            yield common.KvCacheEvent(removed=common.KvBlocksRemoved(block_hashes=hashes))
        elif kind == "cleared":
            yield common.KvCacheEvent(cleared=common.KvCacheCleared())


def _stored(stored: KvStored) -> Iterator[common.KvCacheEvent]:
    """Runs of blocks, each of which follows the one before."""
    size, tokens = stored.block_size, stored_tokens(stored)
    parent = stored.parent_hash if stored.HasField("parent_hash") else None
    for first in range(0, len(stored.block_hashes), _MOST_BLOCKS):
        run = common.KvBlocksStored()
        if parent is not None:
            run.parent_block_hash = _signed(parent)
        for place, block_hash in enumerate(stored.block_hashes[first : first + _MOST_BLOCKS], first):
            its_own = tokens[place * size : (place + 1) * size]
            run.blocks.add(block_hash=_signed(block_hash), token_ids=its_own, block_size=size)
            parent = block_hash
        yield common.KvCacheEvent(stored=run)


def _signed(block_hash: int) -> int:
    """The contract has signed numbers for the same 64 bits."""
    return block_hash - 2 * _TWO_TO_63 if block_hash >= _TWO_TO_63 else block_hash
