"""Least recently used, the default."""

from __future__ import annotations

from rhizome_engine.kvcache.lru_list import LruList
from rhizome_engine.kvcache.node import RadixNode


class LruPolicy:
    """Exact least recently used, O(1) per operation, without a heap and without a list of leaves.

    The list holds *all* unlocked nodes. Uses arrive leaf to root, so an unlocked parent is always newer than
    each of its unlocked children; a locked child has a locked parent, which is not in the list. Hence the
    oldest node of the list has no child at all: it is a leaf, and the least recently used one.
    """

    def __init__(self) -> None:
        self._nodes: LruList[RadixNode] = LruList()

    def __len__(self) -> int:
        """Nodes in the order."""
        return len(self._nodes)

    def add(self, node: RadixNode) -> None:
        """Newest."""
        self._nodes.append(node)

    def remove(self, node: RadixNode) -> None:
        """Gone from the order."""
        self._nodes.remove(node)

    def touch(self, node: RadixNode) -> None:
        """Newest again."""
        self._nodes.move_to_newest(node)

    def split(self, upper: RadixNode, lower: RadixNode) -> None:
        """As old as the node was, but newer than its own child."""
        self._nodes.insert_after(upper, lower)

    def cut(self, node: RadixNode) -> None:
        """Its place depends on its last use alone."""

    def victim(self) -> RadixNode | None:
        """The oldest node, which is a leaf."""
        return self._nodes.oldest
