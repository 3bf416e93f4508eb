"""The radix tree of cached prefixes: which pages hold the keys and values of which token sequences.

One tree per namespace, so that tenants cannot observe each other's prompts through timing. Keys are whole
pages; where the next page matches in part, `match` names it so that the caller copies it and hits stay exact
to the token. Everything is host-side integer arrays compared in bulk: no Python runs per token.

The tree owns the pages it lists. Callers hand pages over with `insert` and keep the ones they use alive with
`lock`, which counts on every node up to the root. What goes first when pages are needed is up to a policy
(`eviction/`), and whoever wants to know what comes and goes listens (`listener.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rhizome_engine.kvcache.eviction import EvictionPolicy, LruPolicy
from rhizome_engine.kvcache.listener import CacheListener
from rhizome_engine.kvcache.namespace_stats import NamespaceStats, NamespaceTable
from rhizome_engine.kvcache.node import RadixNode, TokenIds, common_prefix
from rhizome_engine.kvcache.page_pool import PagePool, Pages

_NO_PAGES: Pages = np.empty(0, np.int32)
_TOKEN_BYTES = np.dtype(np.int32).itemsize


class UseClock:
    """Counts uses. Of nodes of trees that share one it can be said which was used later."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The longest cached prefix of a prompt.

    Attributes:
        node: where the matching pages end; lock it before anything can evict.
        pages: [n] int32, every page that matches whole.
        partial: the node whose first page starts with the tokens that follow, None when there is none.
        partial_tokens: how many tokens of that page match, less than a page.
    """

    node: RadixNode
    pages: Pages
    partial: RadixNode | None
    partial_tokens: int


@dataclass(frozen=True, slots=True)
class Insertion:
    """What became of inserted pages.

    Attributes:
        node: where the inserted tokens end.
        pages: [n] int32, the tree's pages for all inserted tokens.
        duplicates: inserted pages that the tree did not take, because it holds the same tokens in others.
    """

    node: RadixNode
    pages: Pages
    duplicates: Pages


@dataclass(frozen=True, slots=True)
class _Walk:
    """How far a prompt led into the tree.

    Attributes:
        node: the last node that matches whole, perhaps the root.
        runs: the pages of the nodes that match whole.
        num_tokens: the tokens of those nodes.
        inside: the child of `node` in which the prompt went on for a page at least, None when there is none.
        shared: how many tokens of that child match, whole pages or not; less than it has.
    """

    node: RadixNode
    runs: list[Pages]
    num_tokens: int
    inside: RadixNode | None
    shared: int


class RadixCache:
    """Cached prefixes over the pages of one pool.

    Args:
        pool: where evicted pages go.
        policy: the order of eviction; None for least recently used.
        listeners: hear of every page that comes or goes.
        clock: shared with another tree; None for one of its own.

    Attributes:
        evictable_pages: pages that `evict` can free now.
        protected_pages: pages of the tree that requests use.
        version: differs from what it was whenever some prompt may match more or less than it did.
    """

    def __init__(
        self,
        pool: PagePool,
        policy: EvictionPolicy | None = None,
        listeners: Sequence[CacheListener] = (),
        clock: UseClock | None = None,
    ) -> None:
        self.evictable_pages = 0
        self.protected_pages = 0
        self.version = 0
        self._pool = pool
        self._page_size = pool.page_size
        self._policy: EvictionPolicy = LruPolicy() if policy is None else policy
        self._listeners = tuple(listeners)
        self._stats = NamespaceTable()
        self._clock = clock or UseClock()
        # A root is listed while it has children; requests may hold one that is not, which owns no pages.
        self._roots: dict[str, RadixNode] = {}

    @property
    def num_pages(self) -> int:
        """Pages of the pool, whoever has them."""
        return self._pool.num_pages

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        return self._page_size

    @property
    def now(self) -> int:
        """Uses since the start: the clock of `created` and `last_use`."""
        return self._clock.now

    def roots(self) -> Iterator[RadixNode]:
        """The start of each namespace that has something cached."""
        return iter(self._roots.values())

    @property
    def num_nodes(self) -> int:
        """Nodes without the roots; walks the tree."""
        return sum(1 for _ in self.nodes())

    def nodes(self, namespace: str | None = None) -> Iterator[RadixNode]:
        """All nodes without the roots, of one namespace or of all, parents before children."""
        stack = [root for name, root in self._roots.items() if namespace in (None, name)]
        while stack:
            node = stack.pop()
            if node.parent is not None:
                yield node
            stack.extend(node.children.values())

    def match(self, namespace: str, token_ids: TokenIds, *, lookups: int = 1) -> PrefixMatch:
        """Find the longest cached prefix and count it as used now, by so many lookups.

        Nothing changes but the order of eviction and, where the prefix ends inside a node, that the node is
        split in two. The caller passes `prompt[:-1]`: at least one token has to be computed for its logits.
        """
        root = self._roots.get(namespace)
        if root is None:
            return PrefixMatch(RadixNode.root(namespace), _NO_PAGES, None, 0)
        node, pages = self._descend(root, token_ids)
        matched = len(pages) * self._page_size
        self._use(node, lookups)
        partial, shared = node.closest_child(token_ids[matched : matched + self._page_size]) or (None, 0)
        return PrefixMatch(node, pages, partial, shared)

    def peek(self, namespace: str, token_ids: TokenIds) -> int:
        """How many tokens `match` would find, a page that matches in part included; changes nothing."""
        root = self._roots.get(namespace)
        if root is None:
            return 0
        walk = self._walk(root, token_ids)
        if walk.inside is not None:
            return walk.num_tokens + walk.shared
        closest = walk.node.closest_child(token_ids[walk.num_tokens : walk.num_tokens + self._page_size])
        return walk.num_tokens + (closest[1] if closest else 0)

    def touch(self, namespace: str, token_ids: TokenIds) -> int:
        """Count what is cached of a prefix as used now, and no node is split; how many whole pages it has."""
        root = self._roots.get(namespace)
        if root is None:
            return 0
        walk = self._walk(root, token_ids)
        self._use(walk.node if walk.inside is None else walk.inside)
        return (walk.num_tokens + walk.shared) // self._page_size

    def peek_nodes(self, namespace: str, token_ids: TokenIds) -> list[tuple[RadixNode, int]]:
        """The nodes whose whole pages `match` would find, and how many of each; changes nothing."""
        root = self._roots.get(namespace)
        if root is None:
            return []
        walk = self._walk(root, token_ids)
        found = [(node, len(node.pages)) for node in walk.node.path_to_root()]
        if walk.inside is not None:
            found.append((walk.inside, walk.shared // self._page_size))
        return found

    def record_lookup(self, namespace: str, hit_tokens: int, miss_tokens: int) -> None:
        """Count a prompt in the statistics, once for each request that is admitted for the first time."""
        self._stats.looked_up(namespace, hit_tokens, miss_tokens)

    def stats(self) -> dict[str, NamespaceStats]:
        """Statistics by namespace, those active longest ago summed under `OTHER_NAMESPACES`."""
        return self._stats.stats()

    def total_stats(self) -> NamespaceStats:
        """Statistics of all namespaces together."""
        return self._stats.total()

    def insert(self, namespace: str, token_ids: TokenIds, pages: Pages) -> Insertion:
        """Hand pages over to the tree.

        Args:
            namespace: whose prompts may use them.
            token_ids: [n * page_size] int32.
            pages: [n] int32; those the tree has for these tokens already may be among them.

        Returns:
            where they are now; the caller frees the duplicates.
        """
        if len(token_ids) != len(pages) * self._page_size:
            raise ValueError(f"{len(token_ids)} tokens do not fill {len(pages)} pages of {self._page_size}")
        root = self._roots.get(namespace) or RadixNode.root(namespace)
        node, known = self._descend(root, token_ids)
        duplicates = pages[: len(known)][pages[: len(known)] != known]
        new = pages[len(known) :].copy()
        if len(new):
            node = self._add_leaf(node, token_ids[len(known) * self._page_size :], new)
            self._roots[namespace] = root
            for listener in self._listeners:
                listener.stored(node)
        self._use(node)  # the leaf as well: a policy has to hear of it before it hears of its parent
        return Insertion(node, np.concatenate([known, new]), duplicates)

    def lock(self, node: RadixNode) -> None:
        """Keep a node and everything above it from eviction until `unlock`."""
        for step in node.path_to_root():
            if step.lock_ref == 0:
                self._policy.remove(step)
                self.evictable_pages -= len(step.pages)
                self.protected_pages += len(step.pages)
            step.lock_ref += 1

    def unlock(self, node: RadixNode) -> None:
        """Undo one `lock`; counts as a use of the path."""
        self._clock.now = now = self._clock.now + 1
        for step in node.path_to_root():
            assert step.lock_ref > 0, "unlocked more often than locked"
            step.lock_ref -= 1
            step.last_use = now
            if step.lock_ref == 0:
                self._policy.add(step)
                self.protected_pages -= len(step.pages)
                self.evictable_pages += len(step.pages)

    def evict(self, num_pages: int) -> int:
        """Free the pages that the policy chooses, cutting a leaf from its tail rather than dropping it whole.

        Returns:
            pages freed: `num_pages`, or fewer where the rest is locked.

        Raises:
            RuntimeError: the policy chose a node that is locked or no leaf; nothing was lost.
        """
        freed = 0
        runs: list[Pages] = []
        try:
            while freed < num_pages and (leaf := self._policy.victim()) is not None:
                if leaf.lock_ref or leaf.children:
                    raise RuntimeError(f"{type(self._policy).__name__} chose a node that is in use")
                count = min(len(leaf.pages), num_pages - freed)
                whole_node = count == len(leaf.pages)
                runs.append(self._cut(leaf, count))
                self._stats.evicted(leaf.namespace, count, whole_node=whole_node)
                freed += count
        finally:
            self._free(runs)
        return freed

    def clear(self, namespace: str | None = None) -> int:
        """Free every page that is not locked, of one namespace or of all; returns how many.

        What requests use and what is pinned stays.
        """
        unlocked = [node for node in self.nodes(namespace) if not node.lock_ref]
        runs: list[Pages] = []
        for node in reversed(unlocked):  # children first
            self._stats.flushed(node.namespace, len(node.pages))
            runs.append(self._cut(node, len(node.pages)))
        return self._free(runs)

    def _walk(self, root: RadixNode, token_ids: TokenIds) -> _Walk:
        """Follow nodes as far as they match, without a change.

        One `startswith` per node is all the comparison there is, until a node that does not match whole.
        """
        size = self._page_size
        runs: list[Pages] = []
        node, start = root, 0
        # Most prompts that miss do so here, before anything as long as they are was copied.
        child = root.children.get(token_ids[:size].tobytes())
        data = token_ids.tobytes() if child is not None else b""
        width = size * _TOKEN_BYTES
        while child is not None:
            if not data.startswith(child.key_bytes, start * _TOKEN_BYTES):
                shared = common_prefix(child.key, token_ids[start:])
                if shared < len(child.key):
                    return _Walk(node, runs, start, child, shared)
            node = child
            runs.append(node.pages)
            start += len(node.pages) * size
            offset = start * _TOKEN_BYTES
            child = node.children.get(data[offset : offset + width])
        return _Walk(node, runs, start, None, 0)

    def _descend(self, root: RadixNode, token_ids: TokenIds) -> tuple[RadixNode, Pages]:
        """Follow whole pages as far as they match; split the last node where they end inside it."""
        walk = self._walk(root, token_ids)
        node = walk.node
        if walk.inside is not None:
            node = self._split(walk.inside, walk.shared // self._page_size)
            walk.runs.append(node.pages)
        return node, np.concatenate(walk.runs) if walk.runs else _NO_PAGES

    def _add_leaf(self, parent: RadixNode, key: TokenIds, pages: Pages) -> RadixNode:
        leaf = RadixNode(key, pages, parent, parent.namespace)
        leaf.created = leaf.last_use = self._clock.now + 1
        parent.add_child(leaf.first_page_key(self._page_size), leaf)
        self._policy.add(leaf)
        self.evictable_pages += len(pages)
        self._stats.stored(leaf.namespace, len(pages))
        self.version += 1
        return leaf

    def _split(self, lower: RadixNode, num_pages: int) -> RadixNode:
        """Give the first pages of a node to a new parent, which inherits the locks."""
        upper = lower.split(num_pages, self._page_size)
        if not lower.lock_ref:
            self._policy.split(upper, lower)
        return upper

    def _use(self, node: RadixNode, lookups: int = 0) -> None:
        """Note that a path is used now, from its end to the root."""
        self._clock.now = now = self._clock.now + 1
        touch = self._policy.touch
        while node.parent is not None:
            node.last_use = now
            node.uses += lookups
            if not node.lock_ref:
                touch(node)
            node = node.parent

    def _cut(self, leaf: RadixNode, num_pages: int) -> Pages:
        """Take pages from the tail of an unlocked leaf; without pages it leaves the tree."""
        keep = len(leaf.pages) - num_pages
        taken = leaf.pages[keep:]
        for listener in self._listeners:
            listener.removed(leaf, taken)
        if keep:
            # Views, so that cutting a long leaf page by page stays O(1) each.
            leaf.key, leaf.pages = leaf.key[: keep * self._page_size], leaf.pages[:keep]
            self._policy.cut(leaf)
            return taken
        assert leaf.parent is not None and not leaf.children and not leaf.lock_ref
        leaf.parent.remove_child(leaf.first_page_key(self._page_size))
        self._policy.remove(leaf)
        if leaf.parent.parent is None and not leaf.parent.children:
            del self._roots[leaf.namespace]
        return taken

    def _free(self, runs: list[Pages]) -> int:
        if not runs:
            return 0
        pages = np.concatenate(runs)
        self._pool.free(pages)
        self.evictable_pages -= len(pages)
        self.version += 1
        return len(pages)
