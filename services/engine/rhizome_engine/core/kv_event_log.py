"""What `WatchKvEvents` tells: which blocks enter and leave the prefix cache.

A block is a page of the radix tree. Its chained hash (`rhizome_transport.block_hashes`) is computed once, as
the page comes, and kept by page number: what leaves is then told without a look at tokens, a snapshot without
a walk.

Changes are collected into one message per scheduler step. The newest messages are kept, a bounded number of
bytes, for readers that are behind; who is further behind gets a snapshot. Until somebody asks for the first
time, only the hashes are kept.
"""

from __future__ import annotations

import time
from collections import deque

import numpy as np

from rhizome.engine.v1.engine_service_pb2 import (
    KvCleared,
    KvEvent,
    KvRemoved,
    KvStored,
    WatchKvEventsResponse,
)
from rhizome_engine.kvcache.node import RadixNode
from rhizome_engine.kvcache.page_pool import Pages
from rhizome_transport.block_hashes import extend_hashes, root_hash

_KEPT_BYTES = 1 << 20
"""About 100,000 block hashes; a reader that missed more is better off with a snapshot."""


class KvEventLog:
    """A `CacheListener` that remembers what came and went lately.

    Args:
        num_pages: pages of the pool.
        page_size: tokens per page.
        kept_bytes: serialised messages are kept up to this size.
        first_sequence: sequence numbers follow this one. By default it is the time in microseconds, which no
            earlier instance has reached: who asks to go on where that one ended gets a snapshot.

    Attributes:
        sequence: of the newest message.
        kept_bytes: the size of all messages that are kept.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        *,
        kept_bytes: int = _KEPT_BYTES,
        first_sequence: int | None = None,
    ) -> None:
        self.sequence = time.time_ns() // 1000 if first_sequence is None else first_sequence
        self._page_size = page_size
        self._hashes = np.zeros(num_pages, np.uint64)
        # How many blocks the prefix has that a page ends; 0 for a page that is not cached.
        self._ends = np.zeros(num_pages, np.int32)
        self._num_cached = 0
        self._watched = False
        self._changes: list[KvEvent] = []
        self._kept: deque[bytes] = deque()
        self.kept_bytes = 0
        self._most_kept_bytes = kept_bytes

    def stored(self, node: RadixNode) -> None:
        """Name the pages of a new leaf; see `CacheListener`."""
        parent, pages = node.parent, node.pages
        assert parent is not None
        if parent.parent is None:
            known, before, position = None, root_hash(node.namespace), 0
        else:
            last = parent.pages[-1]
            known = before = int(self._hashes[last])
            position = int(self._ends[last])
        hashes = extend_hashes(node.key, self._page_size, before, position)
        self._hashes[pages] = hashes
        self._ends[pages] = np.arange(position + 1, position + len(pages) + 1)
        self._num_cached += len(pages)
        if self._watched:
            stored = KvStored(parent_hash=known, block_hashes=hashes.tolist(), block_size=self._page_size)
            self._changes.append(KvEvent(stored=stored))

    def removed(self, node: RadixNode, pages: Pages) -> None:
        """Forget pages; see `CacheListener`."""
        self._ends[pages] = 0
        self._num_cached -= len(pages)
        if self._watched:
            if not self._changes or not self._changes[-1].HasField("removed"):
                self._changes.append(KvEvent(removed=KvRemoved()))
            self._changes[-1].removed.block_hashes.extend(self._hashes[pages].tolist())

    def commit(self) -> None:
        """End a step: what changed since the last one becomes one message."""
        if not self._changes:
            return
        events = self._changes if self._num_cached else [KvEvent(cleared=KvCleared())]
        self._changes = []
        self.sequence += 1
        message = WatchKvEventsResponse(sequence=self.sequence, events=events).SerializeToString()
        self._kept.append(message)
        self.kept_bytes += len(message)
        while self.kept_bytes > self._most_kept_bytes:
            self.kept_bytes -= len(self._kept.popleft())

    def since(self, sequence: int, limit: int) -> list[bytes] | None:
        """Committed messages from a sequence number on.

        Returns:
            serialised messages without `instance_id`, the first `limit` of them, none where the next change
            will have that number; None where it is not remembered or was never given.
        """
        count = self.sequence + 1 - sequence
        if not self._watched or not 0 <= count <= len(self._kept):
            return None
        return [self._kept[index] for index in range(-count, -count + min(count, limit))]

    def snapshot(self) -> bytes:
        """All that is cached now, as a message without `instance_id`; from now on changes are kept."""
        self.commit()
        self._watched = True
        events = [KvEvent(cleared=KvCleared())]
        if self._num_cached:
            hashes = self._hashes[self._ends > 0].tolist()
            events.append(KvEvent(stored=KvStored(block_hashes=hashes, block_size=self._page_size)))
        return WatchKvEventsResponse(sequence=self.sequence, events=events).SerializeToString()
