"""Which backends hold which prefix: chained hash -> set of backends, a bit each.

A backend's view is *exact* while its KV events are followed, and a guess otherwise:

    exact    what the engine says it stored and did not say it removed. What was sent there and is not stored
             yet counts for `SPECULATIVE_S`: it closes the gap between a dispatch and its event.
    guessed  what was sent there, least recently used out first once it exceeds the backend's KV pool. The
             blocks of a prompt are touched last to first, so a prefix never leaves before what continues it.

A prefix counts only if all shorter ones do. Exact views may have holes, where an engine evicts the middle of
a prompt; a match ends at the first.

Memory: about 200 bytes per sampled block (`chain`) and backend that holds it, bounded by the pools.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from rhizome_routing.prefix.chain import SAMPLE_TOKENS

SPECULATIVE_S: Final = 2.0
"""An engine that did not confirm a block within this time did not store it."""

DEFAULT_POOL_TOKENS: Final = 1 << 19
"""Assumed of a backend that does not say how large its KV pool is."""

DEFAULT_BLOCK: Final = 16
_NO_HASH: Final = -1
_FOREVER: Final = math.inf
_EXACT_SLACK: Final = 2


class View:
    """What one backend holds.

    Attributes:
        name: of the backend.
        place: of its bit in the sets.
        bit: that bit.
        exact: KV events say what it holds.
        block_size: tokens per block of the hashes that it is known by.
        capacity: sampled blocks that fit into its pool.
        held: hash -> until when it counts, least recently used first.
    """

    __slots__ = ("bit", "block_size", "capacity", "exact", "held", "name", "place")

    def __init__(self, name: str, place: int, block_size: int) -> None:
        self.name = name
        self.place = place
        self.bit = 1 << place
        self.exact = False
        self.block_size = block_size
        self.capacity = DEFAULT_POOL_TOKENS // max(block_size, SAMPLE_TOKENS)
        self.held: OrderedDict[int, float] = OrderedDict()


class PrefixIndex:
    """The views of all backends.

    Args:
        default_block: tokens per block where a backend does not say.
        clock: seconds that never go back.
    """

    def __init__(
        self, default_block: int = DEFAULT_BLOCK, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._default_block = default_block
        self._clock = clock
        self._holders: dict[int, int] = {}
        self._views: dict[str, View] = {}
        self._names: dict[int, str] = {}
        self._block_sizes: set[int] = set()  # found out again where empty
        self._speculative: deque[tuple[float, View, list[int]]] = deque()

    def __len__(self) -> int:
        """How many different prefixes are held somewhere."""
        return len(self._holders)

    @property
    def block_sizes(self) -> set[int]:
        """In which blocks backends hold something."""
        if not self._block_sizes:
            self._block_sizes = {view.block_size for view in self._views.values()}
        return self._block_sizes

    def view(self, name: str) -> View:
        """A backend's view; an empty one for a backend that is new."""
        found = self._views.get(name)
        if found is None:
            place = next(place for place in itertools.count() if place not in self._names)
            self._names[place] = name
            found = self._views[name] = View(name, place, self._default_block)
            self._block_sizes = set()
        return found

    def match(self, hashes: Sequence[int], lengths: Sequence[int] | None = None) -> dict[str, int]:
        """How much of a prompt each backend holds, from its start on.

        Args:
            hashes: [n] of the prompt's prefixes, shortest first.
            lengths: [n] of the prefixes; 1, 2, 3, … where absent.

        Returns:
            The length of the longest prefix held; backends that hold none are left out.
        """
        self._expire()
        lengths = lengths or range(1, len(hashes) + 1)
        matched: dict[str, int] = {}
        holders, names = self._holders, self._names
        running, length = -1, 0  # at first the set of all backends
        for one, longer in zip((*hashes, _NO_HASH), (*lengths, 0), strict=True):
            still = holders.get(one, 0) & running
            if still != running:
                ended = running ^ still if length else 0
                while ended:
                    last = ended.bit_length() - 1
                    matched[names[last]] = length
                    ended ^= 1 << last
                if not still:
                    break
                running = still
            length = longer
        return matched

    def dispatched(self, name: str, hashes: list[int]) -> None:
        """A prompt with these prefixes went to a backend."""
        if self._speculative:
            self._expire()
        view = self.view(name)
        until = self._clock() + SPECULATIVE_S if view.exact else _FOREVER
        held, bit, holders = view.held, view.bit, self._holders
        for one in reversed(hashes):
            before = held.get(one)
            if before is None:
                holders[one] = holders.get(one, 0) | bit
                held[one] = until
            else:
                held.move_to_end(one)
                if before != _FOREVER:
                    held[one] = until
        if view.exact:
            self._speculative.append((until, view, hashes))
        if len(held) > view.capacity:
            self._trim(view)

    def stored(self, name: str, hashes: Iterable[int]) -> None:
        """A backend says that it holds blocks."""
        view = self.view(name)
        for one in hashes:
            self._holders[one] = self._holders.get(one, 0) | view.bit
            view.held[one] = math.inf
        self._trim(view)

    def removed(self, name: str, hashes: Iterable[int]) -> None:
        """A backend says that it no longer holds blocks; what is on its way there stays."""
        view = self.view(name)
        for one in hashes:
            if view.held.get(one) == math.inf:
                self._drop(view, one)

    def cleared(self, name: str, *, everything: bool = False) -> None:
        """A backend holds nothing; what is on its way there stays, unless `everything` goes."""
        view = self.view(name)
        for one in [one for one, until in view.held.items() if everything or until == math.inf]:
            self._drop(view, one)

    def set_exact(self, name: str, exact: bool) -> None:
        """KV events begin to tell what a backend holds, or no longer do."""
        self.view(name).exact = exact

    def set_pool(self, name: str, pool_tokens: int | None, block_size: int) -> None:
        """Say how large a backend's KV pool is, and its blocks; what was known in other blocks is forgotten.

        Args:
            name: of the backend.
            pool_tokens: as large as before where absent.
            block_size: tokens per block.
        """
        view = self.view(name)
        if pool_tokens is None:
            pool_tokens = view.capacity * max(view.block_size, SAMPLE_TOKENS)
        if block_size != view.block_size:
            self.cleared(name, everything=True)
            view.block_size = block_size
            self._block_sizes = set()
        view.capacity = max(1, pool_tokens // max(block_size, SAMPLE_TOKENS))
        self._trim(view)

    def retain(self, names: Collection[str]) -> None:
        """Forget all backends but these."""
        for name in [name for name in self._views if name not in names]:
            self.cleared(name, everything=True)
            del self._names[self._views.pop(name).place]
            self._block_sizes = set()

    def _expire(self) -> None:
        """Drop what no event confirmed in time."""
        if not self._speculative:
            return
        now = self._clock()
        while self._speculative and self._speculative[0][0] <= now:
            _, view, hashes = self._speculative.popleft()
            for one in hashes:
                if view.held.get(one, math.inf) <= now:
                    self._drop(view, one)

    def _trim(self, view: View) -> None:
        # What an engine says it holds is bounded by its pool, but nobody's word is trusted with our memory.
        most = view.capacity * _EXACT_SLACK if view.exact else view.capacity
        while len(view.held) > most:
            self._drop(view, next(iter(view.held)))

    def _drop(self, view: View, one: int) -> None:
        del view.held[one]
        left = self._holders[one] & ~view.bit
        if left:
            self._holders[one] = left
        else:
            del self._holders[one]
