"""The queue of one group of backends: classes, bounds, deadlines."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

from rhizome_routing.admission.counts import AdmissionCounts
from rhizome_routing.admission.errors import NotAdmitted, QueueTimeout, SystemOverloaded, TenantOverloaded
from rhizome_routing.admission.fair_queue import FairQueue
from rhizome_routing.admission.settings import AdmissionSettings, PriorityClass
from rhizome_routing.admission.ticket import Ticket, TicketState

_CLASSES: Final = tuple(PriorityClass)
_UNKNOWN_DRAIN_S: Final = 10.0


class Capacity(Protocol):
    """What admitted requests may use."""

    def has_room(self, group: str) -> bool:
        """Whether one request more may go to the backends of a group."""
        ...

    def opened(self) -> None:
        """A request was admitted."""

    def closed(self) -> None:
        """An admitted request ended."""


class Admission:
    """Admits requests while there is room, and queues the others.

    Of two classes the higher goes first. A lower one that waits earns something from what goes before it, so
    that it gets its share of all tokens, and goes when that pays for its next request.

    Args:
        settings: classes and bounds.
        capacity: room at the backends.
        clock: monotonic seconds.
        group: of backends that take the same requests, such as those of one model.
        counts: to be counted in, for metrics.
        on_room: called when there may be more room; `pump` unless others use the same backends.

    Attributes:
        clock: see there.
        counts: see there.
    """

    def __init__(
        self,
        settings: AdmissionSettings,
        capacity: Capacity,
        clock: Callable[[], float] = time.monotonic,
        *,
        group: str = "",
        counts: AdmissionCounts | None = None,
        on_room: Callable[[], None] | None = None,
    ) -> None:
        self.clock = clock
        self.counts = counts or AdmissionCounts()
        self._settings = settings
        self._capacity = capacity
        self._group = group
        self._on_room = on_room or self.pump
        self._queues = {one: FairQueue[Ticket](clock()) for one in _CLASSES}
        self._earned = dict.fromkeys(_CLASSES, 0.0)
        self._waiting = 0

    def waiting(self, priority: PriorityClass | None = None) -> int:
        """Requests that wait: all, or those of one class."""
        return self._waiting if priority is None else len(self._queues[priority])

    def at_once(
        self, tenant: str = "", priority: PriorityClass = PriorityClass.NORMAL, tokens: int = 1
    ) -> Ticket | None:
        """A place at the backends if there is room and nobody waits; `None` where one has to `offer`."""
        if self._waiting:
            self._on_room()
        if self._waiting or not self._capacity.has_room(self._group):
            return None
        self.counts.offered += 1
        self.counts.at_once += 1
        self._capacity.opened()
        ticket = Ticket(self, tenant, priority, max(1, tokens), 0.0, 0.0)
        ticket.state = TicketState.ADMITTED
        return ticket

    def offer(
        self,
        tenant: str,
        priority: PriorityClass = PriorityClass.NORMAL,
        tokens: int = 1,
        deadline_s: float | None = None,
    ) -> Ticket:
        """Ask for a place at the backends.

        Args:
            tenant: whose turn it takes.
            priority: its class.
            tokens: prompt tokens that are not cached, and the output to be expected.
            deadline_s: seconds that it may wait; what its class says where that is less.

        Raises:
            TenantOverloaded: too much of the tenant waits.
            SystemOverloaded: too much of its class waits.
        """
        ticket = self.at_once(tenant, priority, tokens)
        if ticket is not None:
            return ticket
        now, longest_s = self.clock(), self._settings.classes[priority].max_wait_s
        wait_s = longest_s if deadline_s is None else min(deadline_s, longest_s)
        ticket = Ticket(self, tenant, priority, max(1, tokens), now, wait_s)
        self.counts.offered += 1
        queue = self._queues[priority]
        refusal = self._refusal(queue, ticket, now)
        if refusal is not None:
            self.counts.refused += 1
            raise refusal
        if not queue:
            self._earned[priority] = 0.0
        ticket.place = queue.push(tenant, ticket, now)
        self._waiting += 1
        self.counts.waiting += 1
        return ticket

    def pump(self) -> None:
        """Admit all for whom there is room."""
        while self.admit_next():
            pass

    def admit_next(self) -> bool:
        """Admit the next one that waits, if there is room; whether one was admitted."""
        now = self.clock()
        while self._waiting and self._capacity.has_room(self._group):
            priority = self._next_class()
            if self._queues[priority].peek().expires_at <= now:
                self.expire(self._queues[priority].peek())
                continue
            ticket, charge = self._queues[priority].pop(now)
            ticket.charge = charge
            self._waiting -= 1
            self.counts.waiting -= 1
            self._earn(priority, ticket.tokens)
            ticket.waited_s = now - ticket.offered_at
            self.counts.queued += 1
            self._capacity.opened()
            ticket.move(TicketState.ADMITTED)
            return True
        return False

    def expire(self, ticket: Ticket) -> None:
        """End a ticket that waited as long as it may; one that does not wait any more stays as it is."""
        if ticket.state is TicketState.WAITING:
            queue, now = self._queues[ticket.priority], self.clock()
            ticket.error = QueueTimeout(
                f"the request waited {now - ticket.offered_at:.1f} s for a backend; try again later",
                _half_drained_s(queue.tokens, queue.rate.per_s(now)),
            )
            self.counts.expired += 1
            self._leave(ticket)

    def close(self, ticket: Ticket, used_tokens: int) -> None:
        """Take a ticket back, wherever it is; one that was taken back stays as it is."""
        if ticket.state is TicketState.WAITING:
            self.counts.cancelled += 1
            self._leave(ticket)
        elif ticket.state is TicketState.ADMITTED:
            ticket.state = TicketState.CLOSED
            if ticket.charge is not None:
                self._queues[ticket.priority].correct(ticket.charge, used_tokens)
                ticket.charge = None
            self._capacity.closed()
            if self.counts.waiting:
                self._on_room()

    def _leave(self, ticket: Ticket) -> None:
        assert ticket.place is not None
        self._queues[ticket.priority].remove(*ticket.place)
        self._waiting -= 1
        self.counts.waiting -= 1
        ticket.move(TicketState.CLOSED)

    def _next_class(self) -> PriorityClass:
        waiting = [one for one in _CLASSES if self._queues[one]]
        for one in waiting[1:]:
            if self._earned[one] >= self._queues[one].peek().tokens:
                return one
        return waiting[0]

    def _earn(self, served: PriorityClass, tokens: int) -> None:
        """Classes below the one that was served earn; one that went before a higher class pays."""
        if any(self._queues[one] for one in _CLASSES if one < served):
            self._earned[served] -= tokens
        for one in _CLASSES:
            if one > served and self._queues[one]:
                share = self._settings.classes[one].share
                self._earned[one] += tokens * share / (1 - share)

    def _refusal(self, queue: FairQueue[Ticket], ticket: Ticket, now: float) -> NotAdmitted | None:
        """Why a request may not even wait.

        A tenant may have as many waiting as places are free: however many tenants flood the queue, each new
        one finds some.
        """
        settings, rate = self._settings, queue.rate.per_s(now)
        free = settings.classes[ticket.priority].max_waiting - len(queue)
        if free <= 0:
            return SystemOverloaded(
                f"{len(queue)} requests of this class wait for a backend; try again later",
                _half_drained_s(queue.tokens, rate),
            )
        flow = queue.flows.get(ticket.tenant)
        if flow is None or not flow.waiting:
            return None
        count = len(flow.waiting)
        if count < min(settings.tenant_requests, free) and (
            flow.tokens + ticket.tokens <= settings.tenant_tokens
        ):
            return None
        return TenantOverloaded(
            f"{count} requests of yours with {flow.tokens} tokens wait already; try again later",
            _half_drained_s(flow.tokens, flow.rate.per_s(now) or rate / queue.tenants),
        )


def _half_drained_s(tokens: int, per_s: float) -> float:
    """When half of what waits will have gone: who then comes back finds room, and not only the first."""
    return tokens / 2 / per_s if per_s > 0 else _UNKNOWN_DRAIN_S
