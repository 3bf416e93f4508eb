"""Collects the events of one answer: numbers the calls, joins neighbours, trims space around calls."""

from __future__ import annotations

import secrets

from rhizome_gateway.generation.events import CallArguments, CallBegun, ParsedEvent, Text

_SPACE = " \t\r\n"


def call_id() -> str:
    """Make up the id of a call."""
    return f"call_{secrets.token_hex(12)}"


class EventWriter:
    """What every tool call parser writes to.

    White space right before a call, between two calls and after the last call is part of the notation, not
    of the answer: a client that sends content and calls back then gets the very prompt that the model wrote,
    and the prefix cache holds it. So white space is held back until it is known what follows.

    Args:
        parallel: False gives out the first call only; later ones are swallowed.
    """

    def __init__(self, parallel: bool) -> None:
        self._parallel = parallel
        self._calls = 0
        self._muted = False
        self._events: list[ParsedEvent] = []
        self._texts: list[str] = []
        self._arguments: list[str] = []
        self._space: list[str] = []
        self._after_call = False

    def text(self, text: str) -> None:
        """Show text."""
        if not text:
            return
        shown = text.rstrip(_SPACE)
        if shown:
            self._end_arguments()
            self._texts += [*self._space, shown]
            self._space.clear()
            self._after_call = False
        if len(shown) < len(text):
            self._space.append(text[len(shown) :])

    def begin(self, name: str) -> None:
        """Begin the next call."""
        self._end_text()
        self._end_arguments()
        self._space.clear()
        self._after_call = True
        self._muted = self._calls > 0 and not self._parallel
        if not self._muted:
            self._events.append(CallBegun(self._calls, call_id(), name))
            self._calls += 1

    def arguments(self, text: str) -> None:
        """Give out more of the arguments of the call that began last."""
        if text and not self._muted:
            self._arguments.append(text)

    def take(self) -> list[ParsedEvent]:
        """Hand over the events since the last time."""
        self._end_text()
        self._end_arguments()
        events, self._events = self._events, []
        return events

    def finish(self) -> list[ParsedEvent]:
        """Hand over the rest: the answer is complete."""
        if not self._after_call:
            self._texts += self._space
        self._space.clear()
        return self.take()

    def _end_text(self) -> None:
        if self._texts:
            self._events.append(Text("".join(self._texts)))
            self._texts.clear()

    def _end_arguments(self) -> None:
        if self._arguments:
            self._events.append(CallArguments(self._calls - 1, "".join(self._arguments)))
            self._arguments.clear()
