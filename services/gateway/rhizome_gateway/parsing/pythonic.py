"""Calls written as a Python list: `[f(a=1, b="x"), g()]`, as Llama 3.2 and Llama 4 may.

The list must be the first thing in the answer; `<|python_start|>` and `<|python_end|>` may stand around it.
Arguments are keywords with literal values. They are given out as JSON, a whole call at once: only a complete
one can be translated. What breaks the list is shown as text, from after the last call that was given out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

from rhizome_gateway.generation.events import ParsedEvent
from rhizome_gateway.parsing.event_writer import EventWriter
from rhizome_gateway.parsing.json_value import Progress, skip_space
from rhizome_gateway.parsing.markers import MarkerSearch
from rhizome_gateway.parsing.python_arguments import ArgumentsEnd, to_json

OPENING = "<|python_start|>"
CLOSING = "<|python_end|>"

_NAME = re.compile(r"[A-Za-z0-9_.\-]*")
_MAX_NAME_CHARS = 512


class PythonicParser:
    """The output parser for Python calls.

    Args:
        names: the declared tools; from a call of another one on, the list is text.
        parallel: False gives out the first call only.
    """

    def __init__(self, names: Collection[str], *, parallel: bool = True) -> None:
        self._names = frozenset(names)
        self._writer = EventWriter(parallel)
        self._closing = MarkerSearch([CLOSING])
        self._held: list[str] = []
        self._matched_chars = 0
        self._name = ""
        self._arguments: list[str] = []
        self._arguments_end = ArgumentsEnd()
        self._json = ""
        self._begun = False
        self._state: Callable[[PythonicParser, str, int], int] = PythonicParser._beginning

    def push(self, text: str) -> Sequence[ParsedEvent]:
        """Take the next piece of text."""
        at = 0
        while at < len(text):
            at = self._state(self, text, at)
        return self._writer.take()

    def finish(self) -> Sequence[ParsedEvent]:
        """The answer is complete: give out what was held back."""
        self._writer.text("".join(self._held) + self._closing.flush())
        self._held.clear()
        return self._writer.finish()

    def _text(self, text: str, at: int) -> int:
        self._writer.text(text[at:])
        return len(text)

    def _not_a_call(self, at: int) -> int:
        self._writer.text("".join(self._held))
        self._held.clear()
        self._state = PythonicParser._text
        return at

    def _beginning(self, text: str, at: int) -> int:
        end = self._skip_space(text, at)
        if end < len(text) and text[end] == OPENING[0]:
            self._state = PythonicParser._marker
            return end
        return self._list(text, end)

    def _marker(self, text: str, at: int) -> int:
        if text[at] != OPENING[self._matched_chars]:
            return self._not_a_call(at)
        self._held.append(text[at])
        self._matched_chars += 1
        if self._matched_chars == len(OPENING):
            self._state = PythonicParser._list
        return at + 1

    def _list(self, text: str, at: int) -> int:
        end = self._skip_space(text, at)
        if end == len(text):
            return end
        if text[end] != "[":
            return self._not_a_call(end)
        self._held.append("[")
        self._state = PythonicParser._item
        return end + 1

    def _item(self, text: str, at: int) -> int:
        end = self._skip_space(text, at)
        if end == len(text):
            return end
        if text[end] == "]" and self._begun:
            return self._list_closed(end)
        self._name, self._state = "", PythonicParser._reading_name
        return end

    def _reading_name(self, text: str, at: int) -> int:
        found = _NAME.match(text, at)
        end = min(found.end(), at + _MAX_NAME_CHARS - len(self._name)) if found else at
        self._name += text[at:end]
        self._held.append(text[at:end])
        if end < len(text):
            self._state = PythonicParser._after_name
        return end

    def _after_name(self, text: str, at: int) -> int:
        end = self._skip_space(text, at)
        if end == len(text):
            return end
        if text[end] != "(" or self._name not in self._names:
            return self._not_a_call(end)
        self._held.append("(")
        self._arguments, self._arguments_end = [], ArgumentsEnd()
        self._state = PythonicParser._reading_arguments
        return end + 1

    def _reading_arguments(self, text: str, at: int) -> int:
        end = self._arguments_end.feed(text, at)
        self._held.append(text[at:end])
        self._arguments.append(text[at:end])
        if self._arguments_end.progress is Progress.BROKEN:
            return self._not_a_call(end)
        if self._arguments_end.progress is Progress.COMPLETE:
            translated = to_json("".join(self._arguments))
            if translated is None:
                return self._not_a_call(end)
            self._json, self._state = translated, PythonicParser._after_call
        return end

    def _after_call(self, text: str, at: int) -> int:
        end = self._skip_space(text, at)
        if end == len(text):
            return end
        if text[end] not in ",]":
            return self._not_a_call(end)
        self._writer.begin(self._name)
        self._writer.arguments(self._json)
        self._begun = True
        if text[end] == "]":
            return self._list_closed(end)
        self._held = [","]
        self._state = PythonicParser._item
        return end + 1

    def _list_closed(self, at: int) -> int:
        self._held.clear()
        self._state = PythonicParser._after_list
        return at + 1

    def _after_list(self, text: str, at: int) -> int:
        shown, marker, at = self._closing.feed(text, at)
        self._writer.text(shown)
        if marker is not None:
            self._state = PythonicParser._text
        return at

    def _skip_space(self, text: str, at: int) -> int:
        end = skip_space(text, at)
        self._held.append(text[at:end])
        return end
