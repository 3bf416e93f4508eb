"""Tool calls with JSON arguments, in whatever notation a model has for them.

What happens to a call that goes wrong is decided here, for all JSON notations (docs/tools-and-reasoning.md):

- before it was given out, all of it is shown as text, from its marker on;
- inside its arguments, what follows up to the next marker goes to the arguments as it is: the client sees
  what the model wrote, and that it is no JSON;
- after its arguments, the call stands, and what follows is text;
- where the text just ends, what was given out stays.

Each character is read once: nothing that turned out to be text is searched for calls again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from rhizome_gateway.generation.events import ParsedEvent
from rhizome_gateway.parsing.call_object import MAX_NAME_CHARS, ROLES, CallObject, Role
from rhizome_gateway.parsing.event_writer import EventWriter
from rhizome_gateway.parsing.json_value import JsonValue, Progress, skip_space
from rhizome_gateway.parsing.markers import MarkerSearch

_NAME = re.compile(r"[A-Za-z0-9_.\-]+")
_ID = re.compile(r"[A-Za-z0-9_\-]*")


@dataclass(frozen=True, slots=True)
class Notation:
    """How a model writes its calls.

    Attributes:
        opening: the marker before a call, or before several.
        closing: the marker after them.
        bare: whether a call at the very beginning of the answer needs no marker.
        objects: `{"name": ..., "arguments": ...}` may follow, one or several.
        arrays: they may stand in `[...]`.
        named: `name{...}` may follow, where the object is the arguments.
        id_tag: may follow a name; an id follows it.
        arguments_tag: may stand before the arguments that follow a name.
        separators: may stand between two objects, besides white space.
        roles: what the keys of an object mean.
        dropped: markers around the text of the answer, which are no part of it.
    """

    opening: str
    closing: str | None = None
    bare: bool = False
    objects: bool = True
    arrays: bool = False
    named: bool = False
    id_tag: str | None = None
    arguments_tag: str | None = None
    separators: str = ""
    roles: Mapping[str, Role] = field(default_factory=lambda: ROLES, hash=False)
    dropped: tuple[str, ...] = ()

    @property
    def markers(self) -> frozenset[str]:
        """What must be visible in the text, special token or not."""
        markers = (self.opening, self.closing, self.id_tag, self.arguments_tag)
        return frozenset(marker for marker in markers if marker)


class JsonCallParser:
    """The output parser of a notation.

    Args:
        notation: how calls are written.
        names: the declared tools; calls of others are text.
        parallel: False gives out the first call only.
    """

    def __init__(self, notation: Notation, names: Collection[str], *, parallel: bool = True) -> None:
        self._notation = notation
        self._names = frozenset(names)
        self._writer = EventWriter(parallel)
        self._outside = MarkerSearch([notation.opening, *notation.dropped])
        self._inside = self._outside
        if notation.closing:
            self._inside = MarkerSearch([notation.opening, notation.closing, *notation.dropped])
        self._search = self._outside
        self._between_calls = re.compile("[ \t\r\n" + re.escape(notation.separators) + "]*")
        self._held: list[str] = []
        self._call = self._new_call()
        self._value = JsonValue()
        self._in_array = False
        self._name = ""
        self._tag = ""
        self._state: Callable[[JsonCallParser, str, int], int] = (
            JsonCallParser._beginning if notation.bare else JsonCallParser._text
        )

    def push(self, text: str) -> Sequence[ParsedEvent]:
        """Take the next piece of text."""
        at = 0
        while at < len(text):
            at = self._state(self, text, at)
        return self._writer.take()

    def finish(self) -> Sequence[ParsedEvent]:
        """The answer is complete: give out what was held back."""
        rest = self._search.flush()
        if self._state is JsonCallParser._broken_arguments:
            self._writer.arguments(rest)
        else:
            self._writer.text(rest)
        if self._state is not JsonCallParser._after_object:
            self._show_held()
        return self._writer.finish()

    def _text(self, text: str, at: int) -> int:
        shown, marker, at = self._search.feed(text, at)
        self._writer.text(shown)
        self._after_marker(marker)
        return at

    def _broken_arguments(self, text: str, at: int) -> int:
        shown, marker, at = self._search.feed(text, at)
        self._writer.arguments(shown)
        self._after_marker(marker)
        return at

    def _after_marker(self, marker: str | None) -> None:
        if marker is None:
            return
        self._state = JsonCallParser._text
        if marker in self._notation.dropped:
            return
        self._search = self._outside
        if marker == self._notation.opening:
            self._held = [marker]
            self._state = JsonCallParser._body

    def _beginning(self, text: str, at: int) -> int:
        """At the start of an answer whose calls need no marker."""
        end = self._skip_space(text, at)
        if end < len(text):
            if text[end] == "{":
                self._begin_object()
            else:
                self._not_a_call()
        return end

    def _body(self, text: str, at: int) -> int:
        """After an opening marker: what kind of call is it?"""
        end = self._skip_space(text, at)
        if end == len(text):
            return end
        if text[end] == "{" and self._notation.objects:
            self._begin_object()
        elif text[end] == "[" and self._notation.arrays:
            self._in_array, self._state = True, JsonCallParser._first_item
            self._held.append("[")
            return end + 1
        elif self._notation.named and _NAME.match(text, end):
            self._name, self._state = "", JsonCallParser._reading_name
        else:
            self._not_a_call()
        return end

    def _first_item(self, text: str, at: int) -> int:
        end = self._skip_space(text, at)
        if end < len(text):
            if text[end] == "{":
                self._begin_object()
            else:
                self._not_a_call()
        return end

    def _begin_object(self) -> None:
        self._call = self._new_call()
        self._state = JsonCallParser._object

    def _new_call(self) -> CallObject:
        bare = self._notation.bare
        return CallObject(self._names, self._writer, self._notation.roles, first_key_decides=bare)

    def _object(self, text: str, at: int) -> int:
        call = self._call
        end = call.feed(text, at)
        if not call.begun:
            self._held.append(text[at:end])
        else:
            self._held.clear()
        if call.progress is Progress.COMPLETE:
            self._search = self._inside
            self._state = JsonCallParser._after_object
        elif call.progress is Progress.BROKEN:
            if call.begun:
                self._search = self._inside
            if call.begun and not call.arguments_complete:
                self._in_array, self._state = False, JsonCallParser._broken_arguments
            else:
                self._not_a_call()
        return end

    def _after_object(self, text: str, at: int) -> int:
        """After a call: another one, the end of the array, or text."""
        found = self._between_calls.match(text, at)
        end = found.end() if found else at
        self._held.append(text[at:end])
        if end == len(text):
            return end
        if text[end] == "{":
            self._begin_object()
        elif text[end] == "]" and self._in_array:
            self._held.clear()
            self._in_array, self._state = False, JsonCallParser._text
            return end + 1
        else:
            self._not_a_call()
        return end

    def _reading_name(self, text: str, at: int) -> int:
        found = _NAME.match(text, at)
        end = min(found.end(), at + MAX_NAME_CHARS - len(self._name)) if found else at
        self._name += text[at:end]
        self._held.append(text[at:end])
        if end < len(text):
            self._state = JsonCallParser._after_name
        return end

    def _after_name(self, text: str, at: int) -> int:
        end = self._skip_space(text, at)
        if end == len(text):
            return end
        if text[end] == "{" and self._name in self._names:
            self._writer.begin(self._name)
            self._held.clear()
            self._value, self._state = JsonValue(), JsonCallParser._arguments
        else:
            self._tag, self._state = "", JsonCallParser._reading_tag
        return end

    def _reading_tag(self, text: str, at: int) -> int:
        tag = self._tag + text[at]
        tags = [each for each in (self._notation.id_tag, self._notation.arguments_tag) if each]
        if not any(each.startswith(tag) for each in tags):
            self._not_a_call()
            return at
        self._held.append(text[at])
        self._tag = tag
        if tag in tags:
            before_id = tag == self._notation.id_tag
            self._state = JsonCallParser._reading_id if before_id else JsonCallParser._after_name
        return at + 1

    def _reading_id(self, text: str, at: int) -> int:
        found = _ID.match(text, at)
        end = found.end() if found else at
        self._held.append(text[at:end])
        if end < len(text):
            self._state = JsonCallParser._after_name
        return end

    def _arguments(self, text: str, at: int) -> int:
        end = self._value.feed(text, at)
        self._writer.arguments(text[at:end])
        if self._value.progress is not Progress.UNFINISHED:
            broken = self._value.progress is Progress.BROKEN
            self._search = self._inside
            self._state = JsonCallParser._broken_arguments if broken else JsonCallParser._text
        return end

    def _skip_space(self, text: str, at: int) -> int:
        end = skip_space(text, at)
        self._held.append(text[at:end])
        return end

    def _not_a_call(self) -> None:
        self._show_held()
        self._in_array = False
        self._state = JsonCallParser._text

    def _show_held(self) -> None:
        self._writer.text("".join(self._held))
        self._held.clear()
