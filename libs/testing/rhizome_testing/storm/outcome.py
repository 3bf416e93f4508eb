"""What became of a request, as its caller sees it."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


class Ending(enum.Enum):
    """How a request ended."""

    EXACT = "exact"
    """Every word, and a proper end."""
    REFUSED = "refused"
    """An error in words instead of an answer."""
    CUT = "cut"
    """The words so far are right, and whoever reads them sees that the rest is missing."""
    DROPPED = "dropped"
    """The connection ended without a word."""
    SILENT = "silent"
    """It ended like an answer, and words are missing."""
    WRONG = "wrong"
    """There are other words than there should be, or another account of them."""
    HUNG = "hung"
    """Nothing came before its deadline was over."""


HONEST = frozenset({Ending.EXACT, Ending.REFUSED, Ending.CUT})
"""What a caller can live with, whatever happens to servers."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request.

    Attributes:
        ending: how it ended.
        tokens: of the answer that came.
        began_s: when it was sent, on the monotonic clock.
        first_s: when the first token came, or 0.
        ended_s: when it ended.
        detail: an error's words, or what is wrong.
        attempts: servers that it went to, where the answer says so.
    """

    ending: Ending
    tokens: int
    began_s: float
    first_s: float
    ended_s: float
    detail: str = ""
    attempts: int = 1


def counted(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many ended how, every ending among them."""
    counts = Counter(outcome.ending for outcome in outcomes)
    return {ending.value: counts[ending] for ending in Ending}
