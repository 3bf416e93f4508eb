"""Requests that came in one call and enter the queue as others leave it.

A call with a thousand inputs is one caller: it takes one place in the queue, and more where half of the queue
stays free for others. So a call larger than the queue can be served, and no call fills it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from rhizome_engine.scheduler.request import Request


class _Group:
    """What came together: requests that are held back, in order, and those in the queue or running."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.held = dict.fromkeys(requests)
        self.out: set[Request] = set()

    @property
    def first(self) -> list[Request]:
        """The one that goes next, if any is left."""
        return list(islice(self.held, 1))

    def take(self) -> Request:
        """Let the next one go."""
        request = next(iter(self.held))
        del self.held[request]
        self.out.add(request)
        return request


class Backlog:
    """Groups of requests; each has at least one in the queue until all of it is."""

    def __init__(self) -> None:
        self._group_of: dict[Request, _Group] = {}
        self._groups: list[_Group] = []  # those that hold something back, oldest first

    def __iter__(self) -> Iterator[Request]:
        """Requests that are held back."""
        return (request for group in self._groups for request in group.held)

    def __len__(self) -> int:
        return sum(len(group.held) for group in self._groups)

    def add(self, requests: Sequence[Request]) -> None:
        """Hold back requests that came together; they have the same deadline."""
        group = _Group(requests)
        self._groups.append(group)
        self._group_of.update(dict.fromkeys(requests, group))

    def forget(self, request: Request) -> None:
        """A request ended, or never was here."""
        group = self._group_of.pop(request, None)
        if group is not None:
            group.held.pop(request, None)
            group.out.discard(request)

    def release(self, room: int) -> list[Request]:
        """Let requests into the queue: one of each group that has none there, then of those that have fewest.

        Args:
            room: places that may be taken.
        """
        self._groups = [group for group in self._groups if group.held]
        released = [group.take() for group in self._groups if not group.out]
        while len(released) < room and (left := [group for group in self._groups if group.held]):
            released.append(min(left, key=lambda group: len(group.out)).take())
        return released

    def expired(self, now: float) -> list[Request]:
        """Held back requests whose deadline has passed."""
        late = [group for group in self._groups if any(request.deadline <= now for request in group.first)]
        return [request for group in late for request in group.held]
