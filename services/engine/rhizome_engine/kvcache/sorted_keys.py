"""Byte strings in order, to find the one that shares the longest prefix with another.

In a sorted sequence the longest common prefix with `x` belongs to one of the two neighbours of the place
where `x` would stand, so a node with a hundred thousand children finds its best partial match without looking
at them. Blocks of bounded length keep insertion and removal cheap: O(log n) comparisons and a move of at most
`_BLOCK` pointers.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

_BLOCK = 512


class SortedKeys:
    """A sorted set of byte strings."""

    __slots__ = ("_blocks", "_firsts")

    def __init__(self) -> None:
        self._blocks: list[list[bytes]] = []
        self._firsts: list[bytes] = []

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks:
            yield from block

    def add(self, key: bytes) -> None:
        """Insert a key that is not in the set."""
        if not self._blocks:
            self._blocks.append([key])
            self._firsts.append(key)
            return
        index = self._block_of(key)
        block = self._blocks[index]
        insort(block, key)
        self._firsts[index] = block[0]
        if len(block) > _BLOCK:
            upper = block[_BLOCK // 2 :]
            del block[_BLOCK // 2 :]
            self._blocks.insert(index + 1, upper)
            self._firsts.insert(index + 1, upper[0])

    def remove(self, key: bytes) -> None:
        """Take out a key that is in the set."""
        index = self._block_of(key)
        block = self._blocks[index]
        position = bisect_left(block, key)
        assert block[position] == key
        del block[position]
        if block:
            self._firsts[index] = block[0]
        else:
            del self._blocks[index]
            del self._firsts[index]

    def neighbours(self, key: bytes) -> list[bytes]:
        """The greatest key below `key` and the least one not below it, where they exist."""
        if not self._blocks:
            return []
        index = self._block_of(key)
        block = self._blocks[index]
        position = bisect_left(block, key)
        found = []
        if position > 0:
            found.append(block[position - 1])
        elif index > 0:
            found.append(self._blocks[index - 1][-1])
        if position < len(block):
            found.append(block[position])
        elif index + 1 < len(self._blocks):
            found.append(self._blocks[index + 1][0])
        return found

    def _block_of(self, key: bytes) -> int:
        index = bisect_left(self._firsts, key)
        if index < len(self._firsts) and self._firsts[index] == key:
            return index
        return max(index - 1, 0)
