"""Prefixes that had to leave the device's pool, kept in the host's memory until they are wanted again.

    device   one radix tree over the pages 0 .. D - 1
    host     another one, of the same kind, over the pages D .. D + H - 1

What the device evicts is saved: the host's tree takes whatever it lacks of the evicted path, from its
beginning on, so that it has no holes and is a prefix tree like the other. Where there is too little room,
even after it evicted what it had not used for longest, the path is cut short. What a request finds there
beyond the device's own is loaded: it gets pages of its own, and counts as computed. A prefix that came back
stays on the host too, so that evicting it again costs no copy.

Nothing is copied here. Copies are noted in the order of the decisions (`PageCopies`), and steps do them in
that order. Between calls nobody holds pages of this tree: whatever it has can be dropped at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rhizome_engine.kvcache.listener import CacheListener
from rhizome_engine.kvcache.node import RadixNode, TokenIds
from rhizome_engine.kvcache.page_copies import PageCopies
from rhizome_engine.kvcache.page_pool import PagePool, Pages
from rhizome_engine.kvcache.radix_cache import RadixCache, UseClock

_MOST_SAVED_TOKENS = 16_384
"""Of one path at once: everybody in the step waits. It goes on with what is evicted next."""


class HostTier:
    """The second tier; a `CacheListener` of the first one's tree.

    Args:
        num_pages: pages of the host's memory.
        page_size: tokens per page, in both tiers.
        first_page: the least of its page numbers: as many as the device has pages.
        copies: where copies are noted.
        clock: of the device's tree.
        listeners: hear of every page that comes into this tier or leaves it.

    Attributes:
        pool: its free pages.
        cache: its tree. Statistics of lookups are of requests that asked this tier.
        saved_tokens: tokens copied from the device.
        loaded_tokens: tokens that requests got from here and did not compute.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        first_page: int,
        copies: PageCopies,
        clock: UseClock,
        listeners: Sequence[CacheListener] = (),
    ) -> None:
        self.pool = PagePool(num_pages, page_size, first_page)
        self.cache = RadixCache(self.pool, None, listeners, clock)
        self.saved_tokens = 0
        self.loaded_tokens = 0
        self._page_size = page_size
        self._copies = copies
        self._is_flushing = False

    def stored(self, node: RadixNode) -> None:
        """What comes into the device's tree is saved when it leaves; see `CacheListener`."""

    def removed(self, node: RadixNode, pages: Pages) -> None:
        """Save what the device's tree gives up, unless it was told to; see `CacheListener`."""
        if self._is_flushing:
            return
        token_ids = node.prefix_ids()
        if len(token_ids) // self._page_size - len(pages) >= self.pool.num_pages:
            return  # there is no room for these pages behind the others of their path
        if self.cache.touch(node.namespace, token_ids) * self._page_size < len(token_ids):
            path = [step.pages for step in node.path_to_root()]
            self._save(node.namespace, token_ids, np.concatenate(path[::-1]))

    def load(
        self,
        namespace: str,
        token_ids: TokenIds,
        start: int,
        more_than: int,
        take_pages: Callable[[int], Pages],
    ) -> int:
        """Bring back what follows the pages that a request has.

        Args:
            namespace: whose prompts it may find.
            token_ids: [n] int32, tokens of the request.
            start: pages that it has.
            more_than: do nothing for so many tokens or fewer.
            take_pages: reserves so many pages for the request, and gives their numbers.

        Returns:
            tokens that the request will have beyond those pages; the last page may be filled in part.
        """
        known = start * self._page_size
        missing = len(token_ids) - known - more_than
        if self.cache.peek(namespace, token_ids) <= known + more_than:
            if missing > 0:  # or the device has all of it, and nobody asks here
                self.cache.record_lookup(namespace, 0, missing)
            return 0
        match = self.cache.match(namespace, token_ids)
        end, sources = match.node, match.pages[start:]
        if match.partial is not None:  # its other slots are overwritten as the request goes on
            end, sources = match.partial, np.append(sources, match.partial.pages[:1])
        self.cache.lock(end)  # or what the device evicts now could take its place
        try:
            targets = take_pages(len(sources))
        finally:
            self.cache.unlock(end)
        self._copies.add(sources, targets, self._page_size)
        loaded = len(match.pages) * self._page_size + match.partial_tokens - known
        self.loaded_tokens += loaded
        gained = loaded - more_than
        self.cache.record_lookup(namespace, gained, missing - gained)
        return loaded

    def flush(self, device: RadixCache, namespace: str | None = None) -> int:
        """Drop everything that is not held, of one namespace or of all, in both tiers.

        Returns:
            pages that the device got back.
        """
        self._is_flushing = True
        try:
            freed = device.clear(namespace)
        finally:
            self._is_flushing = False
        self.cache.clear(namespace)
        return freed

    def _save(self, namespace: str, token_ids: TokenIds, pages: Pages) -> None:
        """Take what is not here of a prefix: [n * page_size] tokens in [n] pages of the device."""
        match = self.cache.match(namespace, token_ids, lookups=0)
        known = len(match.pages)
        self.cache.lock(match.node)
        room = self.pool.num_free + self.cache.evictable_pages
        count = min(len(pages) - known, room, max(_MOST_SAVED_TOKENS // self._page_size, 1))
        self.cache.evict(max(count - self.pool.num_free, 0))
        self.cache.unlock(match.node)
        if not count:
            return
        targets = np.sort(self.pool.allocate(count))  # rows that follow one another are copied together
        end = known + count
        self.cache.insert(
            namespace, token_ids[: end * self._page_size], np.concatenate([match.pages, targets])
        )
        self._copies.add(pages[known:end], targets, self._page_size)
        self.saved_tokens += count * self._page_size
