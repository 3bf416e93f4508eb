"""Whether a waiting request would find room if some running ones were not there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rhizome_engine.kvcache.node import RadixNode
from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache
from rhizome_engine.scheduler.request import Request


class RoomNeeded:
    """What a waiting request needs of the pool: the arithmetic of `SequencePages.attach` without its effects.

    Args:
        request: waits.
        pool: pages to give out.
        cache: what it holds of the request counts as there, and can then not be evicted.
    """

    def __init__(self, request: Request, pool: PagePool, cache: RadixCache) -> None:
        token_ids = request.token_ids[: request.num_tokens - 1 if request.reads_cache else 0]
        found = cache.peek_nodes(request.namespace, token_ids)
        self._path = {node for node, _ in found}
        cached = sum(pages for _, pages in found)
        evictable = sum(pages for node, pages in found if not node.lock_ref)
        self._missing = -(-request.num_tokens // pool.page_size) - cached
        self._available = pool.num_free + cache.evictable_pages - evictable

    def fits(self, leaving: Sequence[Request], headroom: int) -> bool:
        """Whether there is room once some requests gave their pages back.

        Args:
            leaving: running requests.
            headroom: pages that have to stay available for those that remain.
        """
        locks: Counter[RadixNode] = Counter()
        freed = 0
        for request in leaving:
            if request.pages is not None:
                freed += len(request.pages.own_pages)
                locks.update(request.pages.locked_nodes())
        freed += sum(
            len(node.pages)
            for node, count in locks.items()
            if node.lock_ref == count and node not in self._path
        )
        return self._missing + headroom <= self._available + freed
