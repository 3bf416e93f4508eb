"""What every output parser offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rhizome_gateway.generation.events import ParsedEvent


class OutputParser(Protocol):
    """Splits the text of one answer, piece by piece; one instance per answer.

    Nothing that was given out is ever taken back, and how the text is cut into pieces changes nothing but how
    the events are cut: joined `Text`, joined `Reasoning`, and each call's name and joined arguments are the
    same for every cut. Text of which nothing was given out as a call is shown as it is, but for white space
    and reasoning markers.
    """

    def push(self, text: str) -> Sequence[ParsedEvent]:
        """Take the next piece of text."""
        ...

    def finish(self) -> Sequence[ParsedEvent]:
        """The answer is complete: give out what was held back."""
        ...
