"""What a decision needs to know of a backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from rhizome.engine.v1.load_pb2 import Load


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What an engine said about itself, and what this proxy had open there at that moment.

    Attributes:
        load: the report.
        own: requests of this proxy that the report may contain.
        at: when it arrived, in seconds of the monotonic clock.
    """

    load: Load
    own: int
    at: float


class Candidate(Protocol):
    """A backend that a request may go to; policies order any that have this."""

    @property
    def name(self) -> str:
        """Unique among all of them."""
        ...

    @property
    def in_flight(self) -> int:
        """Requests that this proxy has open there."""
        ...

    @property
    def report(self) -> LoadReport | None:
        """Its last load report; `None` when there was none, which never means idle."""
        ...

    @property
    def load_max_age_s(self) -> float:
        """A report older than this says nothing about now."""
        ...

    @property
    def weight(self) -> float:
        """Its share of requests beside others; positive."""
        ...

    @property
    def priority(self) -> int:
        """Its group; others of a lower number get requests first."""
        ...

    @property
    def busy(self) -> bool:
        """Whether others come first because it has too much to do."""
        ...

    def foreign_requests(self) -> int | None:
        """Requests there that are not this proxy's, by the last report; `None` means unknown, never idle."""
        ...


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)
"""Whatever was given to be ordered is what comes back."""
