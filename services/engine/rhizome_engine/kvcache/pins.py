"""Prefixes that stay cached although nobody uses them at the moment.

A pin locks the path of a cached prefix the way a running request does, so neither eviction nor a flush takes
its pages; only `unpin` or the end of its time lets them go. A budget keeps pins from crowding requests out.
It counts distinct pages: prefixes that share a beginning share its cost.

Pinning computes nothing. Whoever wants a prefix warm runs it first, without output, and pins it then.
"""

from __future__ import annotations

import builtins
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rhizome_engine.kvcache.node import RadixNode, TokenIds
from rhizome_engine.kvcache.page_pool import Pages
from rhizome_engine.kvcache.radix_cache import RadixCache


@dataclass(frozen=True, slots=True)
class Pin:
    """A pinned prefix.

    Attributes:
        id: the same for the same tokens of the same namespace, on every engine.
        namespace: whose prompts may use it.
        num_tokens: tokens pinned, whole pages; may be fewer than were asked for.
        num_pages: pages that hold them, those shared with other pins included.
        expires_at: when it ends by itself, on the clock of `PinnedPrefixes`; None for never.
    """

    id: str
    namespace: str
    num_tokens: int
    num_pages: int
    expires_at: float | None


class PinError(Exception):
    """A prefix was not pinned; nothing changed."""


class NothingCachedError(PinError):
    """Not even one whole page of the prefix is in the cache."""


class PinBudgetError(PinError):
    """There is no room among the pages that may be pinned.

    Attributes:
        new_pages: pages of the prefix that no pin has yet.
        pinned_pages: pages pinned already.
        budget_pages: most pages that may be pinned.
    """

    def __init__(self, num_pages: int, new_pages: int, pinned_pages: int, budget_pages: int) -> None:
        super().__init__(
            f"the prefix takes {num_pages} pages, {num_pages - new_pages} of them pinned already; the other "
            f"{new_pages} and the {pinned_pages} pages pinned now exceed the budget of {budget_pages} pages"
        )
        self.new_pages = new_pages
        self.pinned_pages = pinned_pages
        self.budget_pages = budget_pages


@dataclass(frozen=True, slots=True)
class _Held:
    """What a pin holds on to; locked pages stay where they are, so their numbers do not change."""

    pin: Pin
    node: RadixNode
    pages: Pages


class PinnedPrefixes:
    """The pins of one cache. Their number is bounded too: no two of them end in the same page.

    Args:
        cache: where the prefixes are.
        page_size: tokens per page.
        budget_pages: most distinct pages that may be pinned.
        clock: monotonic seconds.

    Attributes:
        pinned_pages: distinct pages pinned now.
        budget_pages: most that there may be.
    """

    def __init__(
        self, cache: RadixCache, page_size: int, budget_pages: int, clock: Callable[[], float]
    ) -> None:
        self.pinned_pages = 0
        self.budget_pages = budget_pages
        self._cache = cache
        self._page_size = page_size
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._pins_of_page = np.zeros(cache.num_pages, np.int32)
        self._next_expiry = math.inf  # no later than the first of all

    def pin(self, namespace: str, token_ids: TokenIds, ttl_s: float | None = None) -> Pin:
        """Pin what is cached of a prefix, or let the pin that it has already live longer.

        Args:
            namespace: whose prefix it is.
            token_ids: [n] int32; only whole pages can be pinned.
            ttl_s: seconds until the pin ends by itself; None for never. A pin's life is never shortened.

        Raises:
            ValueError: `ttl_s` is not positive.
            NothingCachedError: there is nothing to pin.
            PinBudgetError: too many pages would be pinned.
        """
        if ttl_s is not None and not ttl_s > 0:
            raise ValueError(f"ttl_s must be positive, not {ttl_s}")
        now = self._clock()
        self.expire(now)
        match = self._cache.match(namespace, token_ids)
        num_pages = len(match.pages)
        num_tokens = num_pages * self._page_size
        if not num_pages:
            raise NothingCachedError(
                f"of the prefix of {len(token_ids)} tokens not even one page of {self._page_size} is cached"
            )
        pin = Pin(
            id=_pin_id(namespace, token_ids[:num_tokens]),
            namespace=namespace,
            num_tokens=num_tokens,
            num_pages=num_pages,
            expires_at=None if ttl_s is None else now + ttl_s,
        )
        held = self._held.get(pin.id)
        if held is None:
            self._hold(_Held(pin, match.node, match.pages))
        else:
            pin = replace(pin, expires_at=_later(held.pin.expires_at, pin.expires_at))
            self._held[pin.id] = replace(held, pin=pin)
        if pin.expires_at is not None:
            self._next_expiry = min(self._next_expiry, pin.expires_at)
        return pin

    def unpin(self, pin_id: str) -> bool:
        """Let a prefix go; it stays cached until its pages are needed. False where there is no such pin."""
        held = self._held.pop(pin_id, None)
        if held is None:
            return False
        self._pins_of_page[held.pages] -= 1
        self.pinned_pages -= int(np.count_nonzero(self._pins_of_page[held.pages] == 0))
        self._cache.unlock(held.node)
        return True

    def unpin_first(self) -> Pin | None:
        """Let the prefix go whose pin would end first; None where nothing is pinned."""
        never = math.inf
        first = min(self.list(), key=lambda p: never if p.expires_at is None else p.expires_at, default=None)
        if first is not None:
            self.unpin(first.id)
        return first

    def expire(self, now: float) -> builtins.list[Pin]:
        """Let go of what has ended by `now`; cheap enough to ask at every step."""
        if now < self._next_expiry:
            return []
        ended = [pin for pin in self.list() if pin.expires_at is not None and pin.expires_at <= now]
        for pin in ended:
            self.unpin(pin.id)
        self._next_expiry = min(
            (pin.expires_at for pin in self.list() if pin.expires_at is not None), default=math.inf
        )
        return ended

    def holds(self, node: RadixNode) -> bool:
        """Whether a pin keeps the end of a node, and so all of it."""
        return bool(self._pins_of_page[node.pages[-1]])

    def list(self) -> builtins.list[Pin]:
        """All pins, oldest first."""
        return [held.pin for held in self._held.values()]

    def _hold(self, held: _Held) -> None:
        new_pages = int(np.count_nonzero(self._pins_of_page[held.pages] == 0))
        if self.pinned_pages + new_pages > self.budget_pages:
            raise PinBudgetError(len(held.pages), new_pages, self.pinned_pages, self.budget_pages)
        self._cache.lock(held.node)
        self._pins_of_page[held.pages] += 1
        self.pinned_pages += new_pages
        self._held[held.pin.id] = held


def _pin_id(namespace: str, token_ids: TokenIds) -> str:
    """A digest; the length of the namespace keeps its end apart from the first token."""
    name = namespace.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(len(name).to_bytes(8, "little") + name, digest_size=16)
    digest.update(token_ids.astype("<i4").tobytes())
    return digest.hexdigest()


def _later(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else max(left, right)
