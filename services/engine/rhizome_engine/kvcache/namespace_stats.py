"""What each namespace asked of the cache, got from it and left in it.

Namespaces come from clients and may be many, so only the ones active most recently have numbers of their own.
The rest are summed into one entry: whatever is forgotten, the sum over all entries stays true.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from operator import attrgetter

OTHER_NAMESPACES = "other"
"""The entry of all namespaces that are not remembered one by one; one of this name is counted with them."""

_MAX_NAMESPACES = 1024


@dataclass(frozen=True, slots=True)
class NamespaceStats:
    """Counts since the start, or since the namespace was last forgotten, and what is cached now.

    Where nothing was forgotten, and always in total, `stored = evicted + flushed + cached`.

    Attributes:
        lookups_hit: lookups that found at least one token.
        lookups_missed: lookups that found none.
        hit_tokens: prompt tokens found, which need no computing.
        miss_tokens: prompt tokens not found.
        stored_pages: pages that the cache took.
        evicted_pages: pages freed because somebody needed them.
        evicted_nodes: nodes of the tree that eviction removed whole.
        flushed_pages: pages freed on request.
        cached_pages: pages in the cache now.
    """

    lookups_hit: int = 0
    lookups_missed: int = 0
    hit_tokens: int = 0
    miss_tokens: int = 0
    stored_pages: int = 0
    evicted_pages: int = 0
    evicted_nodes: int = 0
    flushed_pages: int = 0
    cached_pages: int = 0

    @classmethod
    def sum(cls, stats: Iterable[NamespaceStats]) -> NamespaceStats:
        """Add up the numbers of several namespaces."""
        columns = zip(*map(_numbers, stats), strict=True)
        return cls(*(sum(column) for column in columns))


_numbers = attrgetter(*(field.name for field in fields(NamespaceStats)))


@dataclass(slots=True)
class _Counters:
    """One namespace's numbers while they grow."""

    lookups_hit: int = 0
    lookups_missed: int = 0
    hit_tokens: int = 0
    miss_tokens: int = 0
    stored_pages: int = 0
    evicted_pages: int = 0
    evicted_nodes: int = 0
    flushed_pages: int = 0

    def stats(self, cached_pages: int) -> NamespaceStats:
        return NamespaceStats(
            self.lookups_hit,
            self.lookups_missed,
            self.hit_tokens,
            self.miss_tokens,
            self.stored_pages,
            self.evicted_pages,
            self.evicted_nodes,
            self.flushed_pages,
            cached_pages,
        )


class NamespaceTable:
    """Counters by namespace, for a bounded number of namespaces.

    Args:
        max_namespaces: so many are remembered one by one; beyond it, the one that was active least recently
            is forgotten.
    """

    def __init__(self, max_namespaces: int = _MAX_NAMESPACES) -> None:
        self._max_namespaces = max_namespaces
        self._counters: OrderedDict[str, _Counters] = OrderedDict()
        self._forgotten = NamespaceStats()
        # Of every namespace that has pages, remembered or not; their number bounds it.
        self._cached_pages: dict[str, int] = {}

    def looked_up(self, namespace: str, hit_tokens: int, miss_tokens: int) -> None:
        """A prompt was looked up."""
        counters = self._of(namespace)
        if hit_tokens:
            counters.lookups_hit += 1
        else:
            counters.lookups_missed += 1
        counters.hit_tokens += hit_tokens
        counters.miss_tokens += miss_tokens

    def stored(self, namespace: str, num_pages: int) -> None:
        """The cache took pages."""
        self._of(namespace).stored_pages += num_pages
        self._cached_pages[namespace] = self._cached_pages.get(namespace, 0) + num_pages

    def evicted(self, namespace: str, num_pages: int, *, whole_node: bool) -> None:
        """Pages of one node were evicted, perhaps all that it had."""
        counters = self._of(namespace)
        counters.evicted_pages += num_pages
        counters.evicted_nodes += whole_node
        self._uncache(namespace, num_pages)

    def flushed(self, namespace: str, num_pages: int) -> None:
        """Pages were freed on request."""
        self._of(namespace).flushed_pages += num_pages
        self._uncache(namespace, num_pages)

    def stats(self) -> dict[str, NamespaceStats]:
        """Numbers by namespace, with `OTHER_NAMESPACES` where there is anything to tell of others."""
        found = {
            namespace: counters.stats(self._cached_pages.get(namespace, 0))
            for namespace, counters in self._counters.items()
        }
        rest = sum(self._cached_pages.values()) - sum(stats.cached_pages for stats in found.values())
        other = replace(self._forgotten, cached_pages=rest)
        if other != NamespaceStats():
            found[OTHER_NAMESPACES] = NamespaceStats.sum(
                [other, found.get(OTHER_NAMESPACES, NamespaceStats())]
            )
        return found

    def total(self) -> NamespaceStats:
        """Numbers of all namespaces together."""
        return NamespaceStats.sum([NamespaceStats(), *self.stats().values()])

    def _of(self, namespace: str) -> _Counters:
        """The counters of a namespace, which becomes the one active most recently."""
        counters = self._counters.get(namespace)
        if counters is not None:
            self._counters.move_to_end(namespace)
            return counters
        counters = self._counters[namespace] = _Counters()
        if len(self._counters) > self._max_namespaces:
            _, oldest = self._counters.popitem(last=False)
            self._forgotten = NamespaceStats.sum([self._forgotten, oldest.stats(0)])
        return counters

    def _uncache(self, namespace: str, num_pages: int) -> None:
        left = self._cached_pages[namespace] - num_pages
        if left:
            self._cached_pages[namespace] = left
        else:
            del self._cached_pages[namespace]
