"""What `WatchKvEvents` tells: which blocks enter and leave the prefix cache.

A block is a page of the radix tree. With a host tier there are two trees, and a block is cached as long as
one of them has it, since to load it is far cheaper than to compute it. Its chained hash
(`rhizome_transport.block_hashes`) is computed as the page comes, and kept by page number: what leaves is then
told without a look at tokens, a snapshot without a walk.

Changes are collected into one message per scheduler step. The newest messages are kept, a bounded number of
bytes, for readers that are behind; who is further behind gets a snapshot. Until somebody asks for the first
time, only the hashes are kept.

Routers of other makes hash tokens in ways of their own, so they are told the tokens, too: a second telling of
the same steps, which exists once somebody asks for it. It leaves out prompts with a namespace, which are a
tenant's, and which such routers could not match.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from rhizome.engine.v1.engine_service_pb2 import (
    KvCleared,
    KvEvent,
    KvRemoved,
    KvStored,
    WatchKvEventsResponse,
)
from rhizome_engine.kvcache.node import RadixNode, TokenIds
from rhizome_engine.kvcache.page_pool import Pages
from rhizome_transport.block_hashes import BlockHashes, extend_hashes, root_hash

_KEPT_BYTES = 1 << 20
"""About 100,000 block hashes; a reader that missed more is better off with a snapshot."""

_TOKENS_SHARE = 8
"""With its 16 tokens, a block takes about so many times as much."""

NAMESPACE_WITH_TOKENS = ""
"""Of the only prompts whose tokens are told."""


class KvEventLog:
    """A `CacheListener` that remembers what came and went lately, of one tree or of two.

    Args:
        num_pages: pages of the pool, or of both.
        page_size: tokens per page.
        has_host: it listens to two trees, whose page numbers differ.
        kept_bytes: serialised messages are kept up to this size.
        first_sequence: sequence numbers follow this one. By default it is the time in microseconds, which no
            earlier instance has reached: who asks to go on where that one ended gets a snapshot.

    Attributes:
        sequence: of the newest message.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        *,
        has_host: bool = False,
        kept_bytes: int = _KEPT_BYTES,
        first_sequence: int | None = None,
    ) -> None:
        self.sequence = time.time_ns() // 1000 if first_sequence is None else first_sequence
        self._page_size = page_size
        self._hashes = np.zeros(num_pages, np.uint64)
        # How many blocks the prefix has that a page ends; 0 for a page that is not cached.
        self._ends = np.zeros(num_pages, np.int32)
        self._num_cached = 0
        # In how many trees a block is; None where that is one at most.
        self._trees_of: dict[int, int] | None = {} if has_host else None
        self._plain = _Telling()
        self._with_tokens = _Telling()
        self._most_kept_bytes = kept_bytes

    @property
    def kept_bytes(self) -> int:
        """The size of all messages without tokens that are kept."""
        return self._plain.kept_bytes

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
        start = self._count(hashes, 1)
        if start == len(hashes):
            return
        if start:
            known = int(hashes[start - 1])
        self._num_cached += len(pages) - start
        for telling in self._tellings(node):
            tokens = node.key[start * self._page_size :] if telling is self._with_tokens else None
            telling.changes.append(self._stored(known, hashes[start:], tokens))

    def removed(self, node: RadixNode, pages: Pages) -> None:
        """Forget pages; see `CacheListener`."""
        self._ends[pages] = 0
        hashes = self._hashes[pages]
        hashes = hashes[self._count(hashes, -1) :]
        if not len(hashes):
            return
        self._num_cached -= len(hashes)
        for telling in self._tellings(node):
            if not telling.changes or not telling.changes[-1].HasField("removed"):
                telling.changes.append(KvEvent(removed=KvRemoved()))
            telling.changes[-1].removed.block_hashes.extend(hashes.tolist())

    def commit(self) -> None:
        """End a step: what changed since the last one becomes one message, in each telling."""
        if not self._plain.changes and not self._with_tokens.changes:
            return
        self.sequence += 1
        most = self._most_kept_bytes
        for telling, limit in ((self._plain, most), (self._with_tokens, most * _TOKENS_SHARE)):
            if telling.watched:
                events = telling.changes if self._num_cached else [KvEvent(cleared=KvCleared())]
                telling.changes = []
                message = WatchKvEventsResponse(sequence=self.sequence, events=events)
                telling.keep(message.SerializeToString(), limit)

    def since(self, sequence: int, limit: int, *, with_token_ids: bool = False) -> list[bytes] | None:
        """Committed messages from a sequence number on.

        Returns:
            serialised messages without `instance_id`, the first `limit` of them, none where the next change
            will have that number; None where it is not remembered or was never given.
        """
        telling = self._with_tokens if with_token_ids else self._plain
        count = self.sequence + 1 - sequence
        if not telling.watched or not 0 <= count <= len(telling.kept):
            return None
        return [telling.kept[index] for index in range(-count, -count + min(count, limit))]

    def snapshot(self) -> bytes:
        """All that is cached now, as a message without `instance_id`; from now on changes are kept."""
        self.commit()
        self._plain.watched = True
        events = [KvEvent(cleared=KvCleared())]
        if self._num_cached:
            cached = self._hashes[self._ends > 0]
            hashes = (cached if self._trees_of is None else np.unique(cached)).tolist()
            events.append(KvEvent(stored=KvStored(block_hashes=hashes, block_size=self._page_size)))
        return WatchKvEventsResponse(sequence=self.sequence, events=events).SerializeToString()

    def snapshot_with_token_ids(self, nodes: Iterable[RadixNode]) -> bytes:
        """As `snapshot`, with tokens and in order; from now on changes are kept with tokens, too.

        Args:
            nodes: all of `NAMESPACE_WITH_TOKENS`, parents before their children; of two trees, one tree's
                before the other's.
        """
        self.commit()
        self._with_tokens.watched = True
        events = [KvEvent(cleared=KvCleared())]
        told: set[int] = set()
        for node in nodes:
            parent = node.parent
            assert parent is not None
            hashes = self._hashes[node.pages]
            start = 0
            if self._trees_of is not None:
                start = sum(one in told for one in hashes.tolist())
                told.update(hashes.tolist())
            known = int(self._hashes[parent.pages[-1]]) if len(parent.pages) else None
            if start < len(hashes):
                known = int(hashes[start - 1]) if start else known
                events.append(self._stored(known, hashes[start:], node.key[start * self._page_size :]))
        return WatchKvEventsResponse(sequence=self.sequence, events=events).SerializeToString()

    def _count(self, hashes: BlockHashes, change: int) -> int:
        """Note that a tree took or lost blocks that follow one another.

        Returns:
            how many of them another tree has; they come first, as it has no holes.
        """
        if self._trees_of is None:
            return 0
        elsewhere = 0
        for block in hashes.tolist():
            count = self._trees_of.get(block, 0) + change
            if count:
                self._trees_of[block] = count
            else:
                del self._trees_of[block]
            elsewhere += count > (change > 0)
        return elsewhere

    def _tellings(self, node: RadixNode) -> Iterator[_Telling]:
        """Those that tell of changes at a node."""
        if self._plain.watched:
            yield self._plain
        if self._with_tokens.watched and node.namespace == NAMESPACE_WITH_TOKENS:
            yield self._with_tokens

    def _stored(self, parent: int | None, hashes: BlockHashes, tokens: TokenIds | None) -> KvEvent:
        stored = KvStored(parent_hash=parent, block_hashes=hashes.tolist(), block_size=self._page_size)
        if tokens is not None:
            stored.token_ids = tokens.astype("<u4", copy=False).tobytes()
        return KvEvent(stored=stored)


class _Telling:
    """One of the two ways to tell of the same steps.

    Attributes:
        watched: somebody asked for it.
        changes: of the current step.
        kept: serialised messages, the newest last.
        kept_bytes: their size.
    """

    def __init__(self) -> None:
        self.watched = False
        self.changes: list[KvEvent] = []
        self.kept: deque[bytes] = deque()
        self.kept_bytes = 0

    def keep(self, message: bytes, most_bytes: int) -> None:
        """Add the newest message and forget the oldest."""
        self.kept.append(message)
        self.kept_bytes += len(message)
        while self.kept_bytes > most_bytes:
            self.kept_bytes -= len(self.kept.popleft())
