"""Requests that wait to start, and who goes next.

Among tenants, who was served least (`FairShare`). Among the requests of one tenant, the policy:

    fcfs      order of arrival
    lpm       longest cached prefix first; who has waited too long goes before, in order of arrival
    priority  highest priority first, then order of arrival; priorities count before tenants

A preempted request keeps its arrival, so it stands before all that came later.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from rhizome_engine.kvcache.host_tier import HostTier
from rhizome_engine.kvcache.radix_cache import RadixCache
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.fair_share import FairShare
from rhizome_engine.scheduler.request import Request

_MAX_RANKED = 128
"""Under lpm, so many of the oldest requests are ranked: looking a prompt up takes microseconds."""

Rank = tuple[int, int]


class _FoundTokens:
    """How many tokens of waiting requests a tree has; looked up again only when the tree changed."""

    def __init__(self, cache: RadixCache) -> None:
        self._cache = cache
        self._found: dict[int, tuple[int, int]] = {}  # arrival order: (cache version, tokens)

    def of(self, request: Request) -> int:
        """Tokens that it would find."""
        version = self._cache.version
        known = self._found.get(request.arrival_order)
        if known is None or known[0] != version:
            known = (version, self._cache.peek(request.namespace, request.token_ids[:-1]))
            self._found[request.arrival_order] = known
        return known[1]

    def forget(self, request: Request) -> None:
        """It waits no more."""
        self._found.pop(request.arrival_order, None)


@dataclass(slots=True)
class _Line:
    """One tenant's requests in order of rank."""

    ranks: list[Rank] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)


class WaitingQueue:
    """Requests in order.

    Args:
        config: policy and fairness.
        cache: where cached prefixes are looked up.
        shares: what tenants were served.
        host: where prefixes are that the cache has no more, None for nowhere.
    """

    def __init__(
        self, config: SchedulerConfig, cache: RadixCache, shares: FairShare, host: HostTier | None = None
    ) -> None:
        self._config = config
        self._shares = shares
        self._cached = _FoundTokens(cache)
        self._tiers = [self._cached] if host is None else [self._cached, _FoundTokens(host.cache)]
        self._lines: dict[str, _Line] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Request]:
        for line in self._lines.values():
            yield from line.requests

    def add(self, request: Request) -> None:
        """Put a request in its place."""
        line = self._lines.setdefault(self._line_of(request), _Line())
        rank = rank_of(request, self._config)
        index = bisect_left(line.ranks, rank)
        line.ranks.insert(index, rank)
        line.requests.insert(index, request)
        self._length += 1

    def remove(self, request: Request) -> None:
        """Take a request out."""
        name = self._line_of(request)
        line = self._lines[name]
        index = bisect_left(line.ranks, rank_of(request, self._config))
        assert line.requests[index] is request
        del line.ranks[index], line.requests[index]
        if not line.requests:
            del self._lines[name]
        for tier in self._tiers:
            tier.forget(request)
        self._length -= 1

    def candidates(self, now: float) -> Iterator[Request]:
        """Requests in the order in which they should start; starting some meanwhile is allowed.

        The tokens of those that were handed out count as served until the real ones do.
        """
        heads = [(self._tenant_rank(line.requests[0], 0), name) for name, line in self._lines.items()]
        heapify(heads)
        orders: dict[str, deque[Request]] = {}
        promised: defaultdict[str, int] = defaultdict(int)
        while heads:
            _, name = heappop(heads)
            if name not in orders:
                orders[name] = self._in_order(self._lines[name], now)
            request = orders[name].popleft()
            promised[name] += request.num_tokens
            if orders[name]:
                heappush(heads, (self._tenant_rank(orders[name][0], promised[name]), name))
            yield request

    def cached_tokens(self, request: Request) -> int:
        """Tokens of a request that the device's cache holds now.

        What the host has is left out: of requests that begin alike one loads it, and the others find it here.
        """
        return self._cached.of(request)

    def _found_tokens(self, request: Request) -> int:
        """Tokens of a request that need no computing, whichever tier has them."""
        return max(tier.of(request) for tier in self._tiers)

    def _in_order(self, line: _Line, now: float) -> deque[Request]:
        requests = line.requests
        if self._config.policy != "lpm" or len(requests) == 1:
            return deque(requests)
        overdue = now - self._config.lpm_max_wait_s
        late = [request for request in requests if request.arrival <= overdue]
        ranked = [request for request in requests[:_MAX_RANKED] if request.arrival > overdue]
        ranked.sort(key=self._found_tokens, reverse=True)
        rest = [request for request in requests[_MAX_RANKED:] if request.arrival > overdue]
        return deque([*late, *ranked, *rest])

    def _tenant_rank(self, head: Request, promised: int) -> tuple[int, float, int]:
        priority = -head.priority if self._config.policy == "priority" else 0
        served = self._shares.cost_served(head.tenant) + promised if self._config.fairness else 0.0
        return priority, served, head.arrival_order

    def _line_of(self, request: Request) -> str:
        return request.tenant if self._config.fairness else ""


def rank_of(request: Request, config: SchedulerConfig) -> Rank:
    """A request's place among those of its tenant, and among running ones; least first."""
    return (-request.priority if config.policy == "priority" else 0, request.arrival_order)


def insert_by_rank(requests: list[Request], request: Request, config: SchedulerConfig) -> None:
    """Insert into a list in order of rank."""
    insort(requests, request, key=lambda other: rank_of(other, config))
