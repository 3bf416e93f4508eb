"""Least frequently used, for traffic where a few prefixes return for ever between many that never do."""

from __future__ import annotations

from rhizome_engine.kvcache.lru_list import LruList
from rhizome_engine.kvcache.node import RadixNode

_MAX_USES = 255


class LfuPolicy:
    """Exact least frequently used, the least recently used among equals; O(1) per operation.

    One list per number of uses, oldest first, and a bit mask of the lists that are not empty: its lowest bit
    is the list to evict from. The mask stays short because counts saturate, so a node that was used more than
    `max_uses` times competes by recency with the others that were.

    Why the victim is a leaf: what counts as a use of a node counts for all its ancestors, a new leaf starts
    at one use, and both halves of a split have the count of the whole. So a parent never has fewer uses than
    its child, saturated or not, whatever was locked meanwhile. If the oldest node of the lowest list had a
    child, the child would be unlocked (a locked one locks its parent) and hence in that same list; and there
    the argument of `LruPolicy` holds: nodes enter a list at its newest end, children before their parents.

    Args:
        max_uses: where counts saturate.
    """

    def __init__(self, max_uses: int = _MAX_USES) -> None:
        self._max_uses = max_uses
        self._by_uses: list[LruList[RadixNode]] = [LruList() for _ in range(max_uses + 1)]
        self._occupied = 0  # bit n: the list of nodes used n times is not empty

    def __len__(self) -> int:
        """Nodes in the order."""
        return sum(len(nodes) for nodes in self._by_uses)

    def add(self, node: RadixNode) -> None:
        """Newest of those used as often; its uses were counted while it was locked."""
        uses = node.rank = min(node.uses, self._max_uses)
        self._by_uses[uses].append(node)
        self._occupied |= 1 << uses

    def remove(self, node: RadixNode) -> None:
        """Gone from the order."""
        uses: int = node.rank
        nodes = self._by_uses[uses]
        nodes.remove(node)
        if not len(nodes):
            self._occupied &= ~(1 << uses)

    def touch(self, node: RadixNode) -> None:
        """Newest of those used as often."""
        if node.rank == min(node.uses, self._max_uses):
            self._by_uses[node.rank].move_to_newest(node)
        else:
            self.remove(node)
            self.add(node)

    def split(self, upper: RadixNode, lower: RadixNode) -> None:
        """As old and as often used as the node was, but newer than its own child."""
        upper.rank = lower.rank
        self._by_uses[lower.rank].insert_after(upper, lower)

    def cut(self, node: RadixNode) -> None:
        """Its place depends on its uses alone."""

    def victim(self) -> RadixNode | None:
        """The oldest of the nodes that were used least often, which is a leaf."""
        lowest = (self._occupied & -self._occupied).bit_length() - 1
        return self._by_uses[lowest].oldest if lowest >= 0 else None
