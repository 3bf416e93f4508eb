"""One edge of the radix tree, with the node at its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
        key_bytes: begins with the bytes of `key`, and is longer where a tail was cut off; a prompt that
            continues with it continues with `key`, which is the fastest way to know.
        lock_ref: requests that use this node or one below it; a locked node is never evicted.
        namespace: of the root, for all nodes below it.
        created: when its tokens were inserted, on the tree's clock, which counts uses.
        last_use: when a path through it was last looked up, inserted or unlocked.
        uses: lookups that found it, and one for its insertion; never more than its parent's.
        rank: the eviction policy's own.
    """

    __slots__ = (
        "_order",
        "children",
        "created",
        "key",
        "key_bytes",
        "last_use",
        "lock_ref",
        "namespace",
        "pages",
        "parent",
        "rank",
        "uses",
    )

    def __init__(self, key: TokenIds, pages: Pages, parent: RadixNode | None, namespace: str) -> None:
        super().__init__()
        self.key_bytes = key.tobytes()
        self.key: TokenIds = np.frombuffer(self.key_bytes, np.int32)
        self.pages = pages
        self.parent = parent
        self.children: dict[bytes, RadixNode] = {}
        self.lock_ref = 0
        self.namespace = namespace
        self.created = 0
        self.last_use = 0
        self.uses = 1
        self.rank: Any = None
        self._order: SortedKeys | None = None

    @classmethod
    def root(cls, namespace: str) -> RadixNode:
        """The start of all prompts of one namespace."""
        return cls(np.empty(0, np.int32), np.empty(0, np.int32), None, namespace)

    def first_page_key(self, page_size: int) -> bytes:
        """Under which key the parent lists this node."""
        return self.key_bytes[: page_size * self.key.itemsize]

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

    def split(self, num_pages: int, page_size: int) -> RadixNode:
        """Give the first pages to a new parent, as old, as often used and as locked as this node."""
        assert self.parent is not None
        length = num_pages * page_size
        upper = RadixNode(self.key[:length], self.pages[:num_pages].copy(), self.parent, self.namespace)
        upper.lock_ref = self.lock_ref
        upper.created, upper.last_use, upper.uses = self.created, self.last_use, self.uses
        self.parent.add_child(upper.first_page_key(page_size), upper)
        self.key_bytes = self.key[length:].tobytes()
        self.key = np.frombuffer(self.key_bytes, np.int32)
        self.pages = self.pages[num_pages:].copy()
        self.parent = upper
        upper.add_child(self.first_page_key(page_size), self)
        return upper

    def prefix_ids(self) -> TokenIds:
        """[n * page_size] int32, all tokens from the root to the end of this node; a copy."""
        keys = [step.key for step in self.path_to_root()]
        return np.concatenate([*reversed(keys), np.empty(0, np.int32)])

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
