"""Open requests at each backend: this proxy's own, exact and immediate, and those of others by report.

Where a report is missing or old, the others' are *unknown, never idle*: as many as the most that any backend
reports.
"""

from __future__ import annotations

from collections.abc import Sequence

from rhizome_routing.candidate import Candidate


def open_requests(backends: Sequence[Candidate]) -> list[tuple[int, bool]]:
    """For each backend its open requests, and whether those of others are unknown."""
    foreign = [backend.foreign_requests() for backend in backends]
    worst = max((count for count in foreign if count is not None), default=0)
    return [
        (backend.in_flight + (worst if others is None else others), others is None)
        for backend, others in zip(backends, foreign, strict=True)
    ]
