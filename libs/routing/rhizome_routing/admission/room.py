"""How many requests more each backend should get now.

    a limit is configured   limit · weight - open there
    else                    the least of
      what it reports       as many as keep `queue_target` waiting there, see `_by_report`
      first tokens          as many as do not make each other late, see `first_tokens`
      unknown_limit         the only one that holds while nothing is known

A backend's own queue knows neither tenants nor classes, so it is kept short, but not empty: an engine that
waits for its next request wastes steps. `max_running` and `busy` bound all of it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from rhizome_routing.admission.counts import AdmissionCounts
from rhizome_routing.admission.first_tokens import FirstTokenLimit
from rhizome_routing.candidate import Candidate, LoadReport

_SLOW_START: Final = 32
"""Requests that a backend may get at once between two reports before it was seen with a queue."""

_FRESH_S: Final = 0.05
"""For so long a backend's room is what it was, unless something happened there."""


@dataclass(frozen=True, slots=True)
class RoomRules:
    """What the settings say about a backend's room.

    Attributes:
        max_in_flight: open requests of this proxy there, for a weight of 1; `None` to find out.
        max_running: with more requests running it is busy; `None` for no limit.
        queue_target: requests that may wait in its own queue.
        unknown_limit: open requests while nothing is known.
        overdue_s: who waits for a first token for so long holds nobody back any more: an endless prompt must
            not keep out whom the server would serve beside it.

    Raises:
        ValueError: nothing would ever be sent there.
    """

    max_in_flight: int | None = None
    max_running: int | None = None
    queue_target: int = 2
    unknown_limit: int = 1024
    overdue_s: float = 2.0

    def __post_init__(self) -> None:
        limits = (self.max_in_flight, self.queue_target, self.unknown_limit)
        if any(limit is not None and limit < 1 for limit in limits) or (self.max_running or 0) < 0:
            raise ValueError("limits of a backend's room must be at least 1, and max_running at least 0")


class Roomy(Candidate, Protocol):
    """A backend whose room is known."""

    @property
    def room(self) -> Room:
        """Its room."""
        ...


class Sent:
    """One request at one backend."""

    __slots__ = ("_answered", "_at", "_open", "_others", "_overdue", "_room", "_streamed", "_tokens")

    def __init__(self, room: Room, tokens: int, at: float, others: int, *, streamed: bool) -> None:
        self._room = room
        self._tokens = tokens
        self._others = others
        self._at = at
        self._streamed = streamed
        self._answered = False
        self._open = True
        self._overdue = False

    def answered(self) -> None:
        """Its first byte came. Further calls do nothing."""
        if self._open and not self._answered:
            self._answered = True
            self._room._overdue -= self._overdue
            self._room._on_answer(self._streamed, self._tokens, self._others, self._at)

    def left(self) -> None:
        """It ended there, well or not. Further calls do nothing."""
        if self._open:
            self._open = False
            self._room._overdue -= self._overdue and not self._answered
            self._room._on_leave(self._streamed, answered=self._answered)


class Room:
    """What one backend has room for.

    Args:
        rules: its limits.
        clock: monotonic seconds, as load reports are stamped with.
        on_change: told of each request that comes, goes or is answered, by how many there are more.

    Attributes:
        in_flight: requests of this proxy there.
        unanswered: those of them that have no first byte.
        awaited: those of them that are streamed: their first byte is their first token.
        known: what the fleet found free here.
        known_at: at which of its looks; -1 when something happened since.
    """

    __slots__ = (
        "_clock", "_knee", "_limit", "_on_change", "_overdue", "_report", "_rules", "_sent", "_times",
        "awaited", "in_flight", "known", "known_at", "unanswered",
    )  # fmt: skip

    def __init__(
        self,
        rules: RoomRules,
        clock: Callable[[], float],
        on_change: Callable[[int], None] = lambda more: None,
    ) -> None:
        self.in_flight = 0
        self.unanswered = 0
        self.awaited = 0
        self.known = 0
        self.known_at = -1
        self._rules = rules
        self._clock = clock
        self._on_change = on_change
        self._times = FirstTokenLimit(rules.unknown_limit)
        self._sent: deque[Sent] = deque()  # streamed ones, in order; some were answered since
        self._overdue = 0
        self._report: LoadReport | None = None
        self._limit: int | None = None
        self._knee: int | None = None

    def sent(self, tokens: int, *, streamed: bool = True) -> Sent:
        """Count a request of so many prompt tokens that are not cached, until it left."""
        now = self._clock()
        sent = Sent(self, tokens, now, self._in_time(now), streamed=streamed)
        if streamed:
            self._sent.append(sent)
        self.in_flight += 1
        self.unanswered += 1
        self.awaited += streamed
        self.known_at = -1
        self._on_change(1)
        return sent

    def free(self, backend: Candidate) -> int:
        """How many requests more `backend`, whose room this is, should get now; not positive for none."""
        if backend.busy:
            return 0
        rules, report = self._rules, backend.report
        if rules.max_in_flight is not None:
            free = max(1, round(rules.max_in_flight * backend.weight)) - self.in_flight
        else:
            fresh = report is not None and self._clock() - report.at <= backend.load_max_age_s
            if report is not None and report is not self._report:
                self._report = report
                self._limit = self._by_report(report)
            limit = rules.unknown_limit
            if self._limit is not None and fresh:
                limit = max(self._limit, self.in_flight + rules.queue_target - self.unanswered)
            elif self._knee is not None:  # it was seen full, and is silent now: perhaps as it is busy
                limit = self._knee + rules.queue_target
            free = min(limit - self.in_flight, self._times.limit - self._in_time(self._clock()))
        if rules.max_running is not None:
            foreign = backend.foreign_requests()
            waiting = report.load.waiting_requests if report is not None and foreign is not None else 0
            free = min(free, rules.max_running + 1 - (self.in_flight + (foreign or 0) - waiting))
        return free

    def _in_time(self, now: float) -> int:
        """Streamed requests that have waited for their first token for less than `overdue_s`."""
        sent, overdue_s = self._sent, self._rules.overdue_s
        while sent:
            first = sent[0]
            waits = first._open and not first._answered
            if waits and now - first._at < overdue_s:
                break
            sent.popleft()
            first._overdue = waits
            self._overdue += waits
        return self.awaited - self._overdue

    def _by_report(self, report: LoadReport) -> int | None:
        """Requests of ours that may be there until the next report; `None` where it does not say who waits.

        Where some wait, what runs is what fits: its `knee`. Where none does there may be room for more, which
        is tried: fast until a queue was seen, then a few at a time beyond the knee.
        """
        load, own, target = report.load, report.own, self._rules.queue_target
        if not load.HasField("waiting_requests"):
            return None
        waiting = load.waiting_requests
        if waiting:  # as large a part of them is ours as of all requests
            everyone = max(own, load.running_requests + waiting)
            self._knee = own - waiting * own // everyone
            return self._knee + target
        if self._knee is None:
            return own + max(_SLOW_START, own)
        self._knee = max(self._knee, own)
        return self._knee + max(target, self._knee // 32)

    def _on_answer(self, streamed: bool, tokens: int, others: int, sent_at: float) -> None:
        self.unanswered -= 1
        if streamed:
            now = self._clock()
            self.awaited -= 1
            self._times.answered(tokens, now - sent_at, others, now)
        self.known_at = -1
        self._on_change(0)

    def _on_leave(self, streamed: bool, *, answered: bool) -> None:
        self.in_flight -= 1
        if not answered:
            self.unanswered -= 1
            self.awaited -= streamed
        self.known_at = -1
        self._on_change(-1)


class Fleet:
    """The room of all backends together.

    An admitted request counts before it is at a backend, and while it is on its way to another one.

    Args:
        backends: those of a group that may get a request now.
        clock: monotonic seconds, as load reports are stamped with.

    Attributes:
        on_room: called when there may be more room and somebody waits.
        counts: of all who want some of it.
    """

    def __init__(
        self, backends: Callable[[str], Iterable[Roomy]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.on_room: Callable[[], None] = lambda: None
        self.counts = AdmissionCounts()
        self._backends = backends
        self._clock = clock
        self._admitted = 0
        self._placed = 0
        self._look = 0
        self._until = 0.0

    def new_room(self, rules: RoomRules) -> Room:
        """The room of a backend that comes into the pool."""
        return Room(rules, self._clock, self._on_change)

    def has_room(self, group: str) -> bool:
        """Whether a group has room for one request more; so has one without any backend.

        A queue does not end an outage: whoever picks a backend says what is wrong.
        """
        ahead, empty = max(0, self._admitted - self._placed), True
        for backend in self._backends(group):
            empty = False
            ahead -= self.free(backend)
            if ahead < 0:
                return True
        return empty

    def free(self, backend: Roomy) -> int:
        """How many requests more a backend should get now; pickers prefer those that should get some."""
        now = self._clock()
        if now >= self._until:
            self._until = now + _FRESH_S
            self._look += 1
        room = backend.room
        if room.known_at != self._look:
            room.known = max(0, room.free(backend))
            room.known_at = self._look
        return room.known

    def refresh(self) -> None:
        """Look again at all backends."""
        self._until = self._clock()

    def news(self) -> None:
        """Something about a backend changed."""
        self.refresh()
        self.on_room()

    def opened(self) -> None:
        """A request was admitted."""
        self._admitted += 1

    def closed(self) -> None:
        """An admitted request ended."""
        self._admitted -= 1

    def _on_change(self, more: int) -> None:
        self._placed += more
        if more <= 0 and self.counts.waiting:
            self.on_room()
