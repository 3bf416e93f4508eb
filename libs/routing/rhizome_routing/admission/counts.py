"""What became of offered requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class AdmissionCounts:
    """Requests that were offered.

    Attributes:
        offered: all, the sum of the others.
        waiting: those that wait now.
        at_once: admitted without waiting.
        queued: admitted after they waited.
        refused: told to come back later.
        expired: waited as long as they may.
        cancelled: given up while they waited.
    """

    offered: int = 0
    waiting: int = 0
    at_once: int = 0
    queued: int = 0
    refused: int = 0
    expired: int = 0
    cancelled: int = 0
