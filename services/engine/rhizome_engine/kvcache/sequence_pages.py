"""The pages of one request: one owner, one way to release them.

    pages   [ p0 p1 p2 | p3 p4 p5 p6 |  .  . ]
              shared       own          not yet reserved
              the tree's   nobody else's
              (locked)

Whatever ends a request (done, cancelled, expired, preempted, failed) calls `release` once; nothing else in
the engine gives pages of a request back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rhizome_engine.kvcache.host_tier import HostTier
from rhizome_engine.kvcache.node import RadixNode, TokenIds
from rhizome_engine.kvcache.page_pool import PagePool, Pages
from rhizome_engine.kvcache.radix_cache import PrefixMatch, RadixCache

CopyPage = Callable[[int, int, int], None]


class SequencePages:
    """Pages that one request holds, between its admission and its release.

    Args:
        pool: where own pages come from.
        cache: where shared pages come from and computed ones go.
        namespace: whose prompts this one may share with.
        table: [max_pages] int32, where the page numbers are written; room for all that the request can hold.
        host: where more may be found than in the cache, None for nowhere.

    Attributes:
        num_pages: pages held, shared and own.
        num_shared: leading pages that belong to the tree.
        are_loading: own pages get what the host has of them, and no step is known to have done that yet.
    """

    def __init__(
        self, pool: PagePool, cache: RadixCache, namespace: str, table: Pages, host: HostTier | None = None
    ) -> None:
        self.num_pages = 0
        self.num_shared = 0
        self.are_loading = False
        self._host = host
        self._pool = pool
        self._cache = cache
        self._namespace = namespace
        self._pages = table
        self._node: RadixNode | None = None

    @property
    def pages(self) -> Pages:
        """[num_pages] int32, the page of each run of `page_size` positions; a view."""
        return self._pages[: self.num_pages]

    @property
    def own_pages(self) -> Pages:
        """Pages that are in flight: neither free nor in the tree."""
        return self._pages[self.num_shared : self.num_pages]

    def locked_nodes(self) -> Iterator[RadixNode]:
        """Nodes of the tree that these pages keep from eviction."""
        return iter(()) if self._node is None else self._node.path_to_root()

    def attach(
        self, token_ids: TokenIds, copy_page: CopyPage, headroom: int, *, reuse: bool = True
    ) -> int | None:
        """Take over the longest cached prefix, if the pool has room for all known tokens.

        Args:
            token_ids: [n] int32, all known tokens; the last one is computed in any case, for its logits.
            copy_page: copies the first slots of a page to another: (source, destination, number of slots).
            headroom: pages that have to stay available beside those.
            reuse: False computes everything anew, for those who want the hidden states of the prompt.

        Returns:
            tokens whose keys and values are there already, or will be once the copies are done; None, and
            nothing is held, without room.
        """
        assert self._node is None, "attached twice"
        found = token_ids[: len(token_ids) - 1 if reuse else 0]
        match = self._cache.match(self._namespace, found)
        self._hold(match.node, match.pages)
        missing = -(-len(token_ids) // self._pool.page_size) - len(match.pages)
        if missing + headroom > self._pool.num_free + self._cache.evictable_pages:
            self.release(token_ids[:0])
            return None
        loaded = self._load(found, match) or self._copy_partial(match, copy_page)
        return len(match.pages) * self._pool.page_size + loaded

    def reserve(self, num_tokens: int) -> bool:
        """Hold pages for the first `num_tokens` tokens; False, and nothing changed, where there are none."""
        missing = -(-num_tokens // self._pool.page_size) - self.num_pages
        if missing <= 0:
            return True
        short = missing - self._pool.num_free
        if short > 0:
            if short > self._cache.evictable_pages:
                return False
            self._cache.evict(short)
        self._pages[self.num_pages : self.num_pages + missing] = self._pool.allocate(missing)
        self.num_pages += missing
        return True

    def share(self, token_ids: TokenIds) -> None:
        """Put the whole pages of computed tokens into the tree and go on using them.

        Args:
            token_ids: [n] int32, tokens whose keys and values are written.
        """
        filled = len(token_ids) // self._pool.page_size
        if filled <= self.num_shared:
            return
        inserted = self._cache.insert(
            self._namespace, token_ids[: filled * self._pool.page_size], self._pages[:filled]
        )
        previous = self._node
        self._hold(inserted.node, inserted.pages)  # before the old lock goes, lest something is evicted
        if previous is not None:
            self._cache.unlock(previous)
        self._pool.free(inserted.duplicates)

    def release(self, token_ids: TokenIds) -> None:
        """Give every page back, the only way to end a request's hold on the pool.

        Args:
            token_ids: [n] int32, tokens whose keys and values are written and worth keeping; empty where
                what the pages hold cannot be trusted. Nor is what they get from the host, before it is there.
        """
        if not self.are_loading:
            self.share(token_ids)
        self._pool.free(self.own_pages)
        self.num_pages = self.num_shared = 0
        if self._node is not None:
            self._cache.unlock(self._node)
            self._node = None

    def _hold(self, node: RadixNode, shared: Pages) -> None:
        self._cache.lock(node)
        self._node = node
        self._pages[: len(shared)] = shared
        self.num_shared = len(shared)
        self.num_pages = max(self.num_pages, self.num_shared)

    def _load(self, token_ids: TokenIds, match: PrefixMatch) -> int:
        """Take over what the host has beyond the cache, if it is more than a copy within the device gives."""
        if self._host is None or not len(token_ids):
            return 0

        def take_pages(count: int) -> Pages:
            # There is room: `attach` made sure of it for all known tokens.
            if not self.reserve((self.num_pages + count) * self._pool.page_size):
                raise RuntimeError(f"{count} pages to load were promised and are not there")
            return self._pages[self.num_pages - count : self.num_pages].copy()

        loaded = self._host.load(
            self._namespace, token_ids, len(match.pages), match.partial_tokens, take_pages
        )
        self.are_loading = loaded > 0
        return loaded

    def _copy_partial(self, match: PrefixMatch, copy_page: CopyPage) -> int:
        """Copy the leading slots of a page that matches in part into a page of our own."""
        if match.partial is None:
            return 0
        source = int(match.partial.pages[0])
        self._cache.lock(match.partial)  # or making room for the copy could evict its source
        try:
            if not self.reserve((self.num_pages + 1) * self._pool.page_size):
                return 0
            copy_page(source, int(self._pages[self.num_pages - 1]), match.partial_tokens)
        finally:
            self._cache.unlock(match.partial)
        return match.partial_tokens
