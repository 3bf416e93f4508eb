"""What the prefix cache looks like, for people: its tree, or as much of it as was used last.

With a host tier there are two trees, which are drawn as one. They are the same prompts, but not split in the
same places, so the union is made of parts of nodes:

    device   [ a a a a a b b ]              union   [ a a a ][ a a ][ b b ]
    host     [ a a a ][ a a ]                        both     both   device
                      [ c c ]                       [ a a a ][ c c ]
                                                              host

A node is never younger than its children, since a use touches the whole path, and both trees count uses on
one clock. So the parts used last, taken one after the other from the open ends of what was taken before, are
a tree again: nobody's parent is missing. Each of them costs a few microseconds, and each child of a node that
has many about one.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rhizome_engine.kvcache.node import RadixNode, TokenIds, common_prefix
from rhizome_engine.kvcache.pins import PinnedPrefixes
from rhizome_engine.kvcache.radix_cache import RadixCache

_TOKEN_BYTES = 4
_Place = tuple[RadixNode, int]
"""A node, and how many of its pages lie before the place."""


@dataclass(frozen=True, slots=True)
class Part:
    """Pages that follow one another in a tree, or in both.

    Attributes:
        id: the number of its last page: the same as long as that stays.
        namespace: whose it is.
        parent: None where prompts begin.
        key: [n * page_size] int32 token ids.
        device: the node of the device's tree that has it, None for none.
        host: the node of the host's, None for none.
        last_use: on the trees' clock.
        device_end: how many pages of `device` lie before its end.
        host_end: the same of `host`.
    """

    id: int
    namespace: str
    parent: Part | None
    key: TokenIds
    device: RadixNode | None
    host: RadixNode | None
    last_use: int
    device_end: int
    host_end: int

    @property
    def uses(self) -> int:
        """Lookups that found it, and one for its insertion."""
        return max(node.uses for node in (self.device, self.host) if node is not None)

    @property
    def locks(self) -> int:
        """Requests and pins that keep it from eviction."""
        return 0 if self.device is None else self.device.lock_ref


@dataclass(frozen=True, slots=True)
class Surveyed:
    """The parts that were asked for.

    Attributes:
        parts: by namespace, parents before their children.
        truncated: there are more.
        now: the clock of the parts' `last_use`.
    """

    parts: dict[str, list[Part]]
    truncated: bool
    now: int


class CacheSurvey:
    """Looks at a cache and changes nothing, not even the order of eviction.

    Args:
        cache: what is looked at.
        pins: those that hold parts of it.
        host: the host tier's tree, None without one.
    """

    def __init__(self, cache: RadixCache, pins: PinnedPrefixes, host: RadixCache | None = None) -> None:
        self._cache = cache
        self._pins = pins
        self._host = host
        self._page_size = cache.page_size

    @property
    def num_pages(self) -> int:
        """Pages of the pool."""
        return self._cache.num_pages

    @property
    def num_host_pages(self) -> int:
        """Pages of the host tier."""
        return 0 if self._host is None else self._host.num_pages

    def pinned(self, part: Part) -> bool:
        """Whether a pin holds a part."""
        return part.device is not None and self._pins.holds(part.device)

    def nodes(self, namespace: str) -> Iterator[RadixNode]:
        """All nodes of one namespace without its root, parents before children, tree after tree."""
        yield from self._cache.nodes(namespace)
        if self._host is not None:
            yield from self._host.nodes(namespace)

    def newest(self, most: int, namespace: str | None = None) -> Surveyed:
        """The parts used last.

        Args:
            most: so many at most, over all namespaces.
            namespace: only this one and those that are a part of it (`name#…`); None for all.
        """
        order, push = itertools.count(), heapq.heappush
        open_ends: list[tuple[int, int, Part | None, _Place | None, _Place | None]] = []

        def offer(parent: Part | None, device: _Place | None, host: _Place | None) -> None:
            for way, other in _ways(device, host, self._page_size * _TOKEN_BYTES, most + 1):
                last_use = 0 if way is None else way[0].last_use
                if other is not None and other[0].last_use > last_use:
                    last_use = other[0].last_use
                push(open_ends, (-last_use, next(order), parent, way, other))

        for name, device, host in self._roots():
            if namespace is None or namespace in (name, name.split("#", 1)[0]):
                offer(None, _place(device, 0), _place(host, 0))
        found: dict[str, list[Part]] = {}
        for _ in range(most):
            if not open_ends:
                break
            _, _, parent, device_place, host_place = heapq.heappop(open_ends)
            part = self._part(parent, device_place, host_place)
            found.setdefault(part.namespace, []).append(part)
            offer(part, _place(part.device, part.device_end), _place(part.host, part.host_end))
        return Surveyed(dict(sorted(found.items())), bool(open_ends), self._cache.now)

    def _roots(self) -> Iterator[tuple[str, RadixNode | None, RadixNode | None]]:
        """Each namespace, with its start in the device's tree and in the host's."""
        hosts = {} if self._host is None else {root.namespace: root for root in self._host.roots()}
        for root in self._cache.roots():
            yield root.namespace, root, hosts.pop(root.namespace, None)
        for root in hosts.values():
            yield root.namespace, None, root

    def _part(self, parent: Part | None, device: _Place | None, host: _Place | None) -> Part:
        """What begins at a place of one tree or of both, as far as they have it in common."""
        place = device or host
        assert place is not None, "of one of them at least"
        node, first = place
        key = node.key[first * self._page_size :]
        last_use = node.last_use
        if device is not None and host is not None:
            shared = common_prefix(key, host[0].key[host[1] * self._page_size :]) // self._page_size
            key = key[: shared * self._page_size]
            last_use = max(last_use, host[0].last_use)
        count = len(key) // self._page_size
        return Part(
            id=int(node.pages[first + count - 1]),
            namespace=node.namespace,
            parent=parent,
            key=key,
            device=device and device[0],
            host=host and host[0],
            last_use=last_use,
            device_end=device[1] + count if device else 0,
            host_end=host[1] + count if host else 0,
        )


def _place(node: RadixNode | None, end: int) -> _Place | None:
    return None if node is None else (node, end)


def _ways(
    device: _Place | None, host: _Place | None, page_bytes: int, most: int
) -> Iterator[tuple[_Place | None, _Place | None]]:
    """How two trees go on at the same place, each way with what the other tree has of it.

    Of very many ways only those used last: the last `most` of each tree are among them.
    """
    keys = [*_after(device, page_bytes, most), *_after(host, page_bytes, most)]
    for key in dict.fromkeys(keys):
        yield _way(device, key, page_bytes), _way(host, key, page_bytes)


def _after(place: _Place | None, page_bytes: int, most: int) -> Iterable[bytes]:
    """The bytes of the first page of each way in which a tree goes on."""
    if place is None:
        return ()
    node, end = place
    if end < len(node.pages):
        return (node.key_bytes[end * page_bytes : (end + 1) * page_bytes],)
    if len(node.children) <= most:
        return node.children
    return [key for key, _ in heapq.nlargest(most, node.children.items(), key=lambda way: way[1].last_use)]


def _way(place: _Place | None, key: bytes, page_bytes: int) -> _Place | None:
    """Where a tree goes on with a page, if it does."""
    if place is None:
        return None
    node, end = place
    if end < len(node.pages):
        return place if node.key_bytes[end * page_bytes : (end + 1) * page_bytes] == key else None
    child = node.children.get(key)
    return None if child is None else (child, 0)
