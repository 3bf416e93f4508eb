"""The radix tree of cached prefixes: which pages hold the keys and values of which token sequences.

One tree per namespace, so that tenants cannot observe each other's prompts through timing. Keys are whole
pages; where the next page matches in part, `match` names it so that the caller copies it and hits stay exact
to the token. Everything is host-side integer arrays compared in bulk: no Python runs per token.

The tree owns the pages it lists. Callers hand pages over with `insert` and keep the ones they use alive with
`lock`, which counts on every node up to the root.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rhizome_engine.kvcache.eviction import EvictionPolicy, LruPolicy
from rhizome_engine.kvcache.node import RadixNode, TokenIds, common_prefix
from rhizome_engine.kvcache.page_pool import PagePool, Pages


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


class RadixCache:
    """Cached prefixes over the pages of one pool.

    Args:
        pool: where evicted pages go.
        policy: the order of eviction.

    Attributes:
        evictable_pages: pages that `evict` can free now.
        protected_pages: pages of the tree that requests use.
    """

    def __init__(self, pool: PagePool, policy: EvictionPolicy | None = None) -> None:
        self.evictable_pages = 0
        self.protected_pages = 0
        self._pool = pool
        self._page_size = pool.page_size
        self._policy: EvictionPolicy = LruPolicy() if policy is None else policy
        # A root is listed while it has children; requests may hold one that is not, which owns no pages.
        self._roots: dict[str, RadixNode] = {}

    @property
    def num_nodes(self) -> int:
        """Nodes without the roots; walks the tree."""
        return sum(1 for _ in self.nodes())

    def nodes(self) -> Iterator[RadixNode]:
        """All nodes without the roots, parents before children."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            if node.parent is not None:
                yield node
            stack.extend(node.children.values())

    def match(self, namespace: str, token_ids: TokenIds) -> PrefixMatch:
        """Find the longest cached prefix and mark it as used now.

        Nothing changes but the order of eviction and, where the prefix ends inside a node, that the node is
        split in two. The caller passes `prompt[:-1]`: at least one token has to be computed for its logits.
        """
        root = self._roots.get(namespace)
        if root is None:
            return PrefixMatch(RadixNode.root(namespace), np.empty(0, np.int32), None, 0)
        node, pages = self._descend(root, token_ids)
        matched = len(pages) * self._page_size
        self._touch(node)
        partial, shared = node.closest_child(token_ids[matched : matched + self._page_size]) or (None, 0)
        return PrefixMatch(node, pages, partial, shared)

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
        if len(known) < len(pages):
            start = len(known) * self._page_size
            leaf = RadixNode(token_ids[start:].copy(), pages[len(known) :].copy(), node, namespace)
            node.add_child(leaf.first_page_key(self._page_size), leaf)
            self._roots[namespace] = root
            self._policy.add(leaf)
            self.evictable_pages += len(leaf.pages)
            node = leaf
        self._touch(node)
        return Insertion(node, np.concatenate([known, pages[len(known) :]]), duplicates)

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
        for step in node.path_to_root():
            assert step.lock_ref > 0, "unlocked more often than locked"
            step.lock_ref -= 1
            if step.lock_ref == 0:
                self._policy.add(step)
                self.protected_pages -= len(step.pages)
                self.evictable_pages += len(step.pages)

    def evict(self, num_pages: int) -> int:
        """Free the pages used least recently, cutting a leaf from its tail rather than dropping it whole.

        Returns:
            pages freed: `num_pages`, or fewer where the rest is locked.
        """
        freed, runs = 0, []
        while freed < num_pages:
            leaf = self._policy.victim()
            if leaf is None:
                break
            runs.append(self._cut(leaf, min(len(leaf.pages), num_pages - freed)))
            freed += len(runs[-1])
        return self._free(runs)

    def clear(self, namespace: str | None = None) -> int:
        """Free every page that no request uses, of one namespace or of all; returns how many."""
        unlocked = [n for n in self.nodes() if not n.lock_ref and namespace in (None, n.namespace)]
        children_first = reversed(unlocked)
        return self._free([self._cut(node, len(node.pages)) for node in children_first])

    def _descend(self, root: RadixNode, token_ids: TokenIds) -> tuple[RadixNode, Pages]:
        """Follow whole pages as far as they match; split the last node where they end inside it."""
        size = self._page_size
        end = len(token_ids) // size * size
        node, start, runs = root, 0, [root.pages]
        while start < end:
            child = node.children.get(token_ids[start : start + size].tobytes())
            if child is None:
                break
            shared = common_prefix(child.key, token_ids[start:end]) // size * size
            if shared < len(child.key):
                node = self._split(child, shared)
                runs.append(node.pages)
                break
            node = child
            runs.append(node.pages)
            start += shared
        return node, np.concatenate(runs)

    def _split(self, lower: RadixNode, num_tokens: int) -> RadixNode:
        """Give the first tokens of a node to a new parent, which inherits the locks."""
        assert lower.parent is not None
        size = self._page_size
        cut = num_tokens // size
        upper = RadixNode(
            lower.key[:num_tokens].copy(), lower.pages[:cut].copy(), lower.parent, lower.namespace
        )
        upper.lock_ref = lower.lock_ref
        lower.parent.add_child(upper.first_page_key(size), upper)
        lower.key, lower.pages, lower.parent = lower.key[num_tokens:].copy(), lower.pages[cut:].copy(), upper
        upper.add_child(lower.first_page_key(size), lower)
        if not lower.lock_ref:
            self._policy.split(upper, lower)
        return upper

    def _touch(self, node: RadixNode) -> None:
        for step in node.path_to_root():
            if step.lock_ref == 0:  # else every node above is locked as well, and in no order
                self._policy.touch(step)

    def _cut(self, leaf: RadixNode, num_pages: int) -> Pages:
        """Take pages from the tail of an unlocked leaf; without pages it leaves the tree."""
        keep = len(leaf.pages) - num_pages
        taken = leaf.pages[keep:]
        if keep:
            # Views, so that cutting a long leaf page by page stays O(1) each.
            leaf.key, leaf.pages = leaf.key[: keep * self._page_size], leaf.pages[:keep]
            return taken
        assert leaf.parent is not None and not leaf.children and not leaf.lock_ref
        self._policy.remove(leaf)
        leaf.parent.remove_child(leaf.first_page_key(self._page_size))
        if leaf.parent.parent is None and not leaf.parent.children:
            del self._roots[leaf.namespace]
        return taken

    def _free(self, runs: list[Pages]) -> int:
        if not runs:
            return 0
        pages = np.concatenate(runs)
        self._pool.free(pages)
        self.evictable_pages -= len(pages)
        return len(pages)
