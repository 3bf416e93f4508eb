"""How an API shows a generation; one implementation per API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rhizome_gateway.errors import ApiError
from rhizome_gateway.generation.events import Event
from rhizome_gateway.generation.summary import Answer, Summary


class StreamWriter(Protocol):
    """Writes the server-sent events of one response; what never changes should be encoded once.

    Attributes:
        keep_alive: sent into a silence.
    """

    keep_alive: bytes

    def event(self, index: int, event: Event) -> bytes:
        """What to send for an event of a choice, possibly nothing.

        A choice's first event is `Begun`, its last is `Ended`.
        """
        ...

    def end(self) -> bytes:
        """What to send once all choices have ended."""
        ...

    def broken_off(self, error: ApiError) -> bytes:
        """What to send when an error ends a response that was started."""
        ...


class Rendering(Protocol):
    """Shows one response, streamed or whole."""

    def stream(self, summary: Summary) -> StreamWriter:
        """Begin a stream; the summary holds each choice that ended before its `Ended` is written."""
        ...

    def whole(self, answers: Sequence[Answer], summary: Summary) -> bytes:
        """The body of a response that is sent at once; one answer per choice."""
        ...
