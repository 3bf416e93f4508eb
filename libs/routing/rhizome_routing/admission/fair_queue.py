"""Turns among the tenants of one class: deficit round robin by tokens, its rounds counted instead of walked.

    paid(t)   tokens of t that were admitted out of this queue, corrected when they are released
    next      the waiting tenant that paid least; who waits longer where two paid the same
    level     the most that anyone admitted had paid before

That is a round robin with a quantum of one token: each round gives every waiting tenant one, and it goes when
they cover what it owes. A heap of what they owe skips the rounds in which nobody goes, so a turn takes
O(log tenants) whatever the size of a request.

A tenant that comes to the queue starts `CREDIT` below `level`. So who uses less than its turn goes next, also
just after a long prompt of its own, for which it would have to wait otherwise until the others had as much.
One that has used its credit, or owes as it used more than it said, keeps what it paid and pays later. Once
nobody waits, all are even.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import Final, Generic, Protocol, TypeVar

from rhizome_routing.admission.drain_rate import DrainRate

CREDIT: Final = 8192
"""Tokens that a tenant may be ahead of those that wait all the time: idle time that is saved, and no more."""

REMEMBERED: Final = 4096
"""Tenants that are known although they do not wait, for what they paid; the oldest are forgiven first."""


class Request(Protocol):
    """What waits."""

    @property
    def tokens(self) -> int:
        """What it is expected to cost; positive."""
        ...


AnyRequest = TypeVar("AnyRequest", bound=Request)


class Flow(Generic[AnyRequest]):
    """One tenant.

    Attributes:
        waiting: its requests by number, the oldest first.
        tokens: theirs together.
        rate: how fast they go, since it waits.
    """

    __slots__ = ("entry", "mark", "paid", "rate", "tenant", "tokens", "waiting")

    def __init__(self, tenant: str, paid: float, now: float) -> None:
        self.tenant = tenant
        self.waiting: OrderedDict[int, AnyRequest] = OrderedDict()
        self.tokens = 0
        self.rate = DrainRate(now)
        self.paid = paid
        self.mark = 0  # grows when what it paid is forgiven
        self.entry = 0  # its one valid entry in the heap


class Charge(Generic[AnyRequest]):
    """What a tenant paid for one request that left the queue."""

    __slots__ = ("flow", "mark", "tokens")

    def __init__(self, flow: Flow[AnyRequest], tokens: int) -> None:
        self.flow, self.tokens, self.mark = flow, tokens, flow.mark


class FairQueue(Generic[AnyRequest]):
    """Waiting requests of one class.

    Attributes:
        rate: how fast they go, since somebody waits.
        tokens: of all of them.
        flows: the tenants that wait, and some that waited.
    """

    def __init__(self, now: float) -> None:
        self.rate = DrainRate(now)
        self.tokens = 0
        self.flows: dict[str, Flow[AnyRequest]] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._heap: list[tuple[float, int, Flow[AnyRequest]]] = []
        self._level = 0.0
        self._size = 0
        self._numbers = 0

    def __len__(self) -> int:
        return self._size

    @property
    def tenants(self) -> int:
        """How many tenants wait."""
        return len(self.flows) - len(self._idle)

    def push(self, tenant: str, request: AnyRequest, now: float) -> tuple[Flow[AnyRequest], int]:
        """Let a request wait; returns its place, for `remove`."""
        if not self._size:
            self.rate = DrainRate(now)
        flow = self.flows.get(tenant)
        if flow is None:
            flow = self.flows[tenant] = Flow(tenant, self._level - CREDIT, now)
        elif not flow.waiting:
            del self._idle[tenant]
            flow.rate = DrainRate(now)
            if flow.paid < self._level - CREDIT:  # more than that is not saved
                flow.paid = self._level - CREDIT
                flow.mark += 1
        self._numbers += 1
        place = self._numbers
        flow.waiting[place] = request
        flow.tokens += request.tokens
        self.tokens += request.tokens
        self._size += 1
        if len(flow.waiting) == 1:
            self._enter(flow)
        return flow, place

    def peek(self) -> AnyRequest:
        """The request that is next; somebody must wait."""
        heap = self._heap
        while heap[0][1] != heap[0][2].entry:
            heapq.heappop(heap)
        return next(iter(heap[0][2].waiting.values()))

    def pop(self, now: float) -> tuple[AnyRequest, Charge[AnyRequest]]:
        """Take the next request out, and charge its tenant."""
        request = self.peek()
        _, _, flow = heapq.heappop(self._heap)
        self._level = max(self._level, flow.paid)
        charge = Charge(flow, request.tokens)
        flow.paid += request.tokens
        flow.rate.left(request.tokens, now)
        self.rate.left(request.tokens, now)
        self.remove(flow, next(iter(flow.waiting)))
        if flow.waiting:
            self._enter(flow)
        return request, charge

    def remove(self, flow: Flow[AnyRequest], place: int) -> None:
        """Take a request out as if it had never been there."""
        request = flow.waiting.pop(place)
        flow.tokens -= request.tokens
        self.tokens -= request.tokens
        self._size -= 1
        if not self._size:
            self.flows.clear()
            self._idle.clear()
            self._heap.clear()
            self._level = 0.0
        elif not flow.waiting:
            flow.entry = 0
            if flow.paid <= self._level - CREDIT:
                del self.flows[flow.tenant]
                return
            self._idle[flow.tenant] = None
            if len(self._idle) > REMEMBERED:
                del self.flows[self._idle.popitem(last=False)[0]]

    def correct(self, charge: Charge[AnyRequest], used: int) -> None:
        """A request that was charged used so many tokens."""
        flow, more = charge.flow, used - charge.tokens
        if not more or self.flows.get(flow.tenant) is not flow or (more < 0 and charge.mark != flow.mark):
            return  # nothing changes, or what it paid is forgiven and there is nothing to give back
        flow.paid += more
        if flow.waiting:
            self._enter(flow)

    def _enter(self, flow: Flow[AnyRequest]) -> None:
        """Put a tenant in order; an entry that it had before counts no more."""
        self._numbers += 1
        flow.entry = self._numbers
        heapq.heappush(self._heap, (flow.paid, flow.entry, flow))
        if len(self._heap) > 2 * len(self.flows) + 64:
            self._heap = [entry for entry in self._heap if entry[1] == entry[2].entry]
            heapq.heapify(self._heap)
