"""The KV pool of a simulated engine: which blocks are held, which are cached, which go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks that follow each other entered the cache.

    Attributes:
        parent: hash of the block before the first one; `None` at the start of a prompt.
        hashes: of the blocks, chained.
        token_ids: of all of them.
    """

    parent: int | None
    hashes: tuple[int, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks left the cache."""

    hashes: tuple[int, ...]


Change = Stored | Removed
_MOST_CHANGES: Final = 65_536
"""Nobody listens where so many pile up."""


class BlockPool:
    """Counts blocks.

    A block is *private* (a request writes it), *shared* (full, named by its hash, held by a request at least)
    or *idle* (held by nobody, kept until its place is needed; the one idle longest goes first). A prompt's
    last block becomes idle before its first, so what goes first is what fewest prompts can use.

    Args:
        blocks: how many there are.
        watched: keep `changes`; nobody else empties them.

    Attributes:
        blocks: as above.
        changes: what entered and left the cache since somebody emptied this list.
    """

    def __init__(self, blocks: int, *, watched: bool = False) -> None:
        self.blocks = blocks
        self.watched = watched
        self.changes: list[Change] = []
        self._holders: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._private = 0

    @property
    def in_use(self) -> int:
        """Blocks that requests hold."""
        return self._private + len(self._holders) - len(self._idle)

    @property
    def idle(self) -> int:
        """Cached blocks that nobody holds."""
        return len(self._idle)

    def hashes(self) -> tuple[int, ...]:
        """Everything cached."""
        return tuple(self._holders)

    def match(self, hashes: Sequence[int]) -> int:
        """How many blocks of a prompt, from its start, are cached."""
        for count, block in enumerate(hashes):
            if block not in self._holders:
                return count
        return len(hashes)

    def reserve(self, shared: Sequence[int], private: int) -> bool:
        """Hold cached blocks and new ones, or nothing at all where there is no room."""
        becoming_held = sum(block in self._idle for block in shared)
        if self.in_use + becoming_held + private > self.blocks:
            return False
        for block in shared:
            self._holders[block] += 1
            self._idle.pop(block, None)
        self._private += private
        self._evict()
        return True

    def share(self, parent: int | None, hashes: Sequence[int], token_ids: Sequence[int]) -> None:
        """Private blocks are full: from now on they go by their hashes.

        Where another request was first, its block is held and the own one is given back.

        Args:
            parent: hash of the block before.
            hashes: of the blocks, chained.
            token_ids: of all of them.
        """
        self._private -= len(hashes)
        size = len(token_ids) // len(hashes) if hashes else 0
        begun = 0  # first block of a run that is new
        for index, block in enumerate(hashes):
            holders = self._holders.get(block)
            self._holders[block] = (holders or 0) + 1
            if holders is not None:
                self._idle.pop(block, None)
                self._note_stored(parent, hashes, token_ids, begun, index, size)
                begun = index + 1
        self._note_stored(parent, hashes, token_ids, begun, len(hashes), size)

    def release(self, shared: Sequence[int], private: int) -> None:
        """A request gives its blocks back; full ones stay until their place is needed."""
        self._private -= private
        for block in reversed(shared):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._idle[block] = None

    def _evict(self) -> None:
        gone = []
        while len(self._holders) + self._private > self.blocks:
            block, _ = self._idle.popitem(last=False)
            del self._holders[block]
            gone.append(block)
        if gone:
            self._note(Removed(tuple(gone)))

    def _note_stored(
        self,
        parent: int | None,
        hashes: Sequence[int],
        token_ids: Sequence[int],
        begin: int,
        end: int,
        size: int,
    ) -> None:
        if begin < end and self.watched:
            before = hashes[begin - 1] if begin else parent
            tokens = tuple(token_ids[begin * size : end * size])
            self._note(Stored(before, tuple(hashes[begin:end]), tokens))

    def _note(self, change: Change) -> None:
        if self.watched and len(self.changes) < _MOST_CHANGES:
            self.changes.append(change)
