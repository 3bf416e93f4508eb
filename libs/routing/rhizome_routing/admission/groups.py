"""One queue for each group of backends; groups that share a backend take turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from rhizome_routing.admission.queue import Admission
from rhizome_routing.admission.room import Fleet
from rhizome_routing.admission.settings import AdmissionSettings

_REMEMBERED: Final = 256


class Admissions:
    """The queues of all groups.

    Args:
        settings: of each queue.
        fleet: the backends.
        clock: monotonic seconds.

    Attributes:
        counts: of all groups, for metrics.
    """

    def __init__(
        self, settings: AdmissionSettings, fleet: Fleet, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.counts = fleet.counts
        self._settings = settings
        self._fleet = fleet
        fleet.on_room = self._take_turns
        self._clock = clock
        self._groups: dict[str, Admission] = {}

    def of(self, group: str) -> Admission:
        """The queue of a group."""
        admission = self._groups.get(group)
        if admission is None:
            if len(self._groups) >= _REMEMBERED:
                self._groups = {name: one for name, one in self._groups.items() if one.waiting()}
            admission = self._groups[group] = Admission(
                self._settings,
                self._fleet,
                self._clock,
                group=group,
                counts=self.counts,
                on_room=self._take_turns,
            )
        return admission

    def waiting(self) -> int:
        """Requests that wait in all groups."""
        return self.counts.waiting

    def pump(self) -> None:
        """Something about the backends changed: admit all for whom there is room now."""
        self._fleet.refresh()
        self._take_turns()

    def _take_turns(self) -> None:
        if not self.counts.waiting:
            return
        waiting = [(name, one) for name, one in self._groups.items() if one.waiting()]
        while waiting:
            served = []
            for name, one in waiting:
                if one.admit_next():
                    served.append((name, one))
                    self._groups[name] = self._groups.pop(name)  # next time it comes last
            waiting = served
