"""A queue in front of so many slots, on a clock that stands still."""

from __future__ import annotations

from types import SimpleNamespace

from rhizome_routing.admission import (
    Admission,
    AdmissionSettings,
    ClassRules,
    PriorityClass,
    Ticket,
)

HIGH, NORMAL, LOW = PriorityClass


class Slots:
    """Room for so many requests."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.open = 0

    def has_room(self, group: str) -> bool:
        return self.open < self.total

    def opened(self) -> None:
        self.open += 1

    def closed(self) -> None:
        self.open -= 1


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def rules(max_waiting: int = 1000, max_wait_s: float = 60.0, low_share: float = 0.1) -> AdmissionSettings:
    return AdmissionSettings(
        classes={
            HIGH: ClassRules(max_waiting, max_wait_s),
            NORMAL: ClassRules(max_waiting, max_wait_s, 0.2),
            LOW: ClassRules(max_waiting, max_wait_s, low_share),
        },
        tenant_requests=max_waiting,
    )


def make(
    total: int = 1, given: AdmissionSettings | None = None, clock: Clock | None = None
) -> SimpleNamespace:
    slots, clock = Slots(total), clock or Clock()
    return SimpleNamespace(admission=Admission(given or rules(), slots, clock), slots=slots, clock=clock)


def counts_add_up(admission: Admission) -> bool:
    counts = admission.counts
    ended = counts.at_once + counts.queued + counts.refused + counts.expired + counts.cancelled
    return counts.offered == ended + admission.waiting()


def drain(one: SimpleNamespace, tickets: list[Ticket], rounds: int) -> list[Ticket]:
    """Release what is admitted, one after another; who was admitted in that time."""
    order, seen = [], {ticket for ticket in tickets if ticket.admitted}
    running = list(seen)
    for _ in range(rounds):
        if not running:
            break
        running.pop(0).release()
        fresh = [ticket for ticket in tickets if ticket.admitted and ticket not in seen]
        seen.update(fresh)
        running += fresh
        order += fresh
    return order
