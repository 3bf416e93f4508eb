"""Which cached prefix goes first when pages are needed.

A policy orders the unlocked nodes of the tree. The tree tells it what happens and always walks a path from
the leaf towards the root, so a parent hears of every use after its children did. A policy must answer
`victim` with a leaf; `LruPolicy` shows how little that takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from rhizome_engine.kvcache.lru_list import LruList
from rhizome_engine.kvcache.node import RadixNode


class EvictionPolicy(Protocol):
    """An order over the unlocked nodes of the tree."""

    def add(self, node: RadixNode) -> None:
        """A node was inserted unlocked, or its last lock went; both count as a use."""

    def remove(self, node: RadixNode) -> None:
        """A node was locked or evicted."""

    def touch(self, node: RadixNode) -> None:
        """An unlocked node was used."""

    def split(self, upper: RadixNode, lower: RadixNode) -> None:
        """An unlocked node became two: `lower` is the known object, `upper` its new parent."""

    def victim(self) -> RadixNode | None:
        """The unlocked leaf to evict next, None when every node is locked."""

    def __len__(self) -> int:
        """Nodes that are ordered now."""


class LruPolicy:
    """Exact least recently used, O(1) per operation, without a heap and without a list of leaves.

    The list holds *all* unlocked nodes. Uses arrive leaf to root, so an unlocked parent is always newer than
    each of its unlocked children; a locked child has a locked parent, which is not in the list. Hence the
    oldest node of the list has no child at all: it is a leaf, and the least recently used one.
    """

    def __init__(self) -> None:
        self._nodes: LruList[RadixNode] = LruList()

    def __len__(self) -> int:
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

    def victim(self) -> RadixNode | None:
        """The oldest node, which is a leaf."""
        return self._nodes.oldest


PolicyFactory = Callable[[], EvictionPolicy]
EVICTION_POLICIES: dict[str, PolicyFactory] = {"lru": LruPolicy}
