"""The base of policies that give each node a key: evict the leaf with the least one.

A policy of your own, in a module of your own:

    from rhizome_engine.kvcache.eviction import LazyHeapPolicy

    class CheapestFirst(LazyHeapPolicy):
        '''Weighs how often a prefix returned against the pages that it occupies.'''

        def key(self, node):
            return node.uses / len(node.pages)

and `eviction_policy: "your_package.module:CheapestFirst"` in the engine's settings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any

from rhizome_engine.kvcache.node import RadixNode

_SLACK = 64

Entry = tuple[Any, int, RadixNode]


class LazyHeapPolicy(ABC):
    """Evicts the unlocked leaf whose `key` is least; amortised O(log n).

    Each unlocked leaf has one current entry in the heap, `node.rank`, whose key is never above the leaf's
    own. A key that rose since is found out when the entry comes to the top, and goes back to its place; a use
    costs no more than asking for the key. A key that fell needs a new entry at once and leaves a stale one
    behind; so do locking, eviction and getting a child. Stale entries are dropped when they come to the top,
    and where they would outnumber the current ones the heap is rebuilt without them, which bounds its size.
    """

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._num_current = 0
        self._serial = 0

    def __len__(self) -> int:
        """Entries of the heap, stale ones included."""
        return len(self._heap)

    @abstractmethod
    def key(self, node: RadixNode) -> Any:
        """What to compare: a number, or a tuple of them, which is slower. Equal keys go in any order.

        May depend on what the node is at the moment: `uses`, `last_use`, `created`, `pages`, `namespace`. It
        is asked for when a node is inserted, used, split, cut, unlocked or becomes a leaf, only for leaves.
        """

    def add(self, node: RadixNode) -> None:
        """A candidate if it is a leaf."""
        self._update(node)

    def remove(self, node: RadixNode) -> None:
        """No candidate any more; but its parent is one if this was its last child."""
        if node.rank is not None:
            node.rank = None
            self._num_current -= 1
        parent = node.parent
        if parent is not None and parent.parent is not None and not parent.lock_ref:
            self._update(parent)

    def touch(self, node: RadixNode) -> None:
        """Its key may have changed."""
        self._update(node)

    def split(self, upper: RadixNode, lower: RadixNode) -> None:
        """The lower half may still be a leaf, of fewer pages; the upper one has a child."""
        self._update(lower)

    def cut(self, node: RadixNode) -> None:
        """Its key may have changed."""
        self._update(node)

    def victim(self) -> RadixNode | None:
        """The leaf with the least key."""
        heap = self._heap
        while heap:
            entry = heap[0]
            node = entry[2]
            if node.rank is entry and not node.children:
                key = self.key(node)
                if key == entry[0]:
                    return node
                node.rank = self._entry(key, node)
                heapreplace(heap, node.rank)
                continue
            heappop(heap)
            if node.rank is entry:
                node.rank = None
                self._num_current -= 1
        return None

    def _update(self, node: RadixNode) -> None:
        """See to it that a leaf has an entry whose key is not above its own."""
        if node.children:
            return
        key, entry = self.key(node), node.rank
        if entry is None:
            self._num_current += 1
        elif not key < entry[0]:
            return
        node.rank = self._entry(key, node)
        heappush(self._heap, node.rank)
        if len(self._heap) > 2 * self._num_current + _SLACK:
            self._heap = [entry for entry in self._heap if entry[2].rank is entry]
            heapify(self._heap)

    def _entry(self, key: Any, node: RadixNode) -> Entry:
        self._serial += 1  # nodes cannot be compared, so equal keys must not come to that
        return key, self._serial, node
