"""One edge of the radix tree, with the node at its end."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rhizome_engine.kvcache.lru_list import Linked
from rhizome_engine.kvcache.page_pool import Pages
from rhizome_engine.kvcache.sorted_keys import SortedKeys

TokenIds = NDArray[np.int32]


class RadixNode(Linked):
    """A run of tokens that continues its parent's run, and the pages that hold their keys and values.

    Attributes:
        key: [n * page_size] int32 token ids, n >= 1; empty at a root.
        pages: [n] int32 page numbers.
        parent: None at a root.
        children: by the bytes of the first page of their key, so that a lookup compares no tokens in Python.
        lock_ref: requests that use this node or one below it; a locked node is never evicted.
        namespace: of the root, for all nodes below it.
    """

    __slots__ = ("_order", "children", "key", "lock_ref", "namespace", "pages", "parent")

    def __init__(self, key: TokenIds, pages: Pages, parent: RadixNode | None, namespace: str) -> None:
        super().__init__()
        self.key = key
        self.pages = pages
        self.parent = parent
        self.children: dict[bytes, RadixNode] = {}
        self.lock_ref = 0
        self.namespace = namespace
        self._order: SortedKeys | None = None

    @classmethod
    def root(cls, namespace: str) -> RadixNode:
        """The start of all prompts of one namespace."""
        return cls(np.empty(0, np.int32), np.empty(0, np.int32), None, namespace)

    def first_page_key(self, page_size: int) -> bytes:
        """Under which key the parent lists this node."""
        return self.key[:page_size].tobytes()

    def add_child(self, key: bytes, child: RadixNode) -> None:
        """List a child, or put it in the place of the one with this key."""
        if key not in self.children:
            if self._order is None:
                self._order = SortedKeys()
            self._order.add(key)
        self.children[key] = child

    def remove_child(self, key: bytes) -> None:
        """Forget a child."""
        del self.children[key]
        assert self._order is not None
        self._order.remove(key)

    def closest_child(self, key: TokenIds) -> tuple[RadixNode, int] | None:
        """The child whose first page shares most leading tokens with `key`, and how many; None for none."""
        if self._order is None or not len(key):
            return None
        best: tuple[RadixNode, int] | None = None
        for neighbour in self._order.neighbours(key.tobytes()):
            shared = common_prefix(np.frombuffer(neighbour, np.int32), key)
            if shared and (best is None or shared > best[1]):
                best = (self.children[neighbour], shared)
        return best

    def path_to_root(self) -> Iterator[RadixNode]:
        """This node and its ancestors without the root, the order in which everything is touched."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


def common_prefix(left: TokenIds, right: TokenIds) -> int:
    """Leading tokens that two runs share."""
    length = min(len(left), len(right))
    differs = left[:length] != right[:length]
    first = int(differs.argmax()) if length else 0
    return first if length and differs[first] else length
