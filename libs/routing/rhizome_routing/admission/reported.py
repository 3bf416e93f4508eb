"""How many requests a backend should have, by what it reports: as many as run there, and hardly one waiting.

Where some wait, what runs is what fits: the *knee*. Where none does there may be room for more, which is
tried: as many again with each report until a queue was seen; later one beyond the knee, then two, four and so
on until some wait. Whoever waits at a backend waits for that one's next slot, however soon another backend
has one, and behind others. So as many wait there as end until somebody can be sent, which is none where
answers are long. Where other clients use it, too, `queue_target` of ours wait: to whoever has nobody waiting
there, no slot comes.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from rhizome_routing.candidate import LoadReport

_SLOW_START: Final = 32
"""Requests that a backend may get at once between two reports before it was seen with a queue."""

_REFILL_S: Final = 0.05
"""Until somebody is sent after another one ended there."""

_STEP_S: Final = 0.1
"""Who was sent so late before a report may wait in it only for the end of a step."""

_NOT_OURS: Final = 2
"""So many more than ours, and an eighth, need not be others': some of ours ended meanwhile."""

_MOST_SENT: Final = 64
"""Of so many that were sent last it is known when."""


class ReportedLimit:
    """The limit of one backend.

    Args:
        queue_target: requests that may wait there where they come and go fast, or others have some.

    Attributes:
        limit: requests of ours, until the next report; `None` where it does not say who waits.
        knee: what fits; `None` until it was seen with a queue.
        spare: how many may wait there.
    """

    __slots__ = ("_ended", "_more", "_most_spare", "_sent", "_told_at", "knee", "limit", "spare")

    def __init__(self, queue_target: int) -> None:
        self.limit: int | None = None
        self.knee: int | None = None
        self.spare = queue_target
        self._most_spare = queue_target
        self._more = 1
        self._sent: deque[float] = deque(maxlen=_MOST_SENT)
        self._ended = 0
        self._told_at: float | None = None

    def sent(self, now: float) -> None:
        """A request goes there."""
        self._sent.append(now)

    def ended(self) -> None:
        """One of ours left."""
        self._ended += 1

    def read(self, report: LoadReport) -> None:
        """Learn from a report."""
        load, own = report.load, report.own
        if load.running_requests + load.waiting_requests - own > _NOT_OURS + own // 8:
            self.spare = self._most_spare
        elif self._told_at is not None and report.at > self._told_at:
            ended_per_s = self._ended / (report.at - self._told_at)
            self.spare = min(self._most_spare, int(ended_per_s * _REFILL_S))
        self._told_at, self._ended = report.at, 0
        limit = self._limit(report)
        self.limit = None if limit is None else max(1, limit)

    def _limit(self, report: LoadReport) -> int | None:
        load, own, knee = report.load, report.own, self.knee
        if not load.HasField("waiting_requests"):
            return None
        waiting = load.waiting_requests
        if knee is not None:
            # With no more than fit, one may wait for something else, such as its grammar or a lot of memory.
            waiting = max(0, waiting - self._just_sent(report.at) - (own <= knee))
        if waiting:  # as large a part of them is ours as of all requests
            everyone = max(own, load.running_requests + waiting)
            self.knee = own - waiting * own // everyone
            self._more = max(1, self.knee // 32)
            return self.knee + self.spare
        if knee is None:
            return own + max(_SLOW_START, own)
        if load.waiting_requests:  # perhaps not for a slot
            return knee + self.spare
        if own > knee:
            self.knee = knee = own
            self._more = min(2 * self._more, knee)
        return knee + max(self._more, self.spare)

    def _just_sent(self, at: float) -> int:
        return sum(at - _STEP_S <= one <= at for one in self._sent)
