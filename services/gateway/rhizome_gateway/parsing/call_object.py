"""A tool call written as a JSON object: `{"name": "f", "arguments": {...}}`.

The name may also be called `function`, the arguments `parameters`, and both may be wrapped as in the OpenAI
API: `{"type": "function", "function": {"name": ..., "arguments": ...}}`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Set
from enum import Enum
from types import MappingProxyType

from rhizome_gateway.parsing.event_writer import EventWriter
from rhizome_gateway.parsing.json_value import JsonValue, Progress, skip_space

MAX_NAME_CHARS = 512
"""A longer key or name, as written, is none of ours."""


class Role(Enum):
    """What a part of the object is for."""

    KEY = "key"
    NAME = "name"
    TYPE = "type"
    ARGUMENTS = "arguments"
    WRAPPER = "wrapper"
    OTHER = "other"


ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "name": Role.NAME,
        "arguments": Role.ARGUMENTS,
        "parameters": Role.ARGUMENTS,
        "type": Role.TYPE,
        "function": Role.WRAPPER,
    }
)
"""What the keys of a call mean, as most models write it."""


class CallObject:
    """Reads one call from pieces of text and writes it as early as is safe.

    A call is given out once its name is a declared one and its arguments have begun as an object. Until
    then it may turn out to be something else: an object whose name is not declared, whose `type` is not
    `function`, that repeats one of these keys, or that is no JSON.

    Args:
        names: the declared tools.
        writer: where the call goes.
        roles: what keys mean; others are skipped.
        first_key_decides: an object whose first key is none of these is no call. Where an answer may be JSON
            for another reason, it is not held back then.

    Attributes:
        progress: `BROKEN` when it is no call, or not one any more; the offending character is not consumed.
        begun: whether the call was given out.
        arguments_complete: whether all its arguments were.
    """

    def __init__(
        self,
        names: Set[str],
        writer: EventWriter,
        roles: Mapping[str, Role] = ROLES,
        *,
        first_key_decides: bool = False,
    ) -> None:
        self.progress = Progress.UNFINISHED
        self.begun = False
        self.arguments_complete = False
        self._names = names
        self._writer = writer
        self._roles = roles
        self._first_key_decides = first_key_decides
        self._name: str | None = None
        self._early: list[str] | None = None
        self._seen: set[Role] = set()
        self._role = Role.KEY
        self._value = JsonValue()
        self._raw: list[str] = []
        self._raw_chars = 0
        self._wrapped = False
        self._state: Callable[[CallObject, str, int], int] = CallObject._opening

    def feed(self, text: str, at: int) -> int:
        """Read `text` from `at` on; return where the object, or the part of it that is there, ends."""
        while at < len(text) and self.progress is Progress.UNFINISHED:
            at = self._state(self, text, at)
        return at

    def _opening(self, text: str, at: int) -> int:
        if text[at] != "{":
            return self._broken(at)
        self._state = CallObject._first_key
        return at + 1

    def _first_key(self, text: str, at: int) -> int:
        at = skip_space(text, at)
        if text.startswith("}", at):
            return self._closed(at)
        return self._key(text, at)

    def _key(self, text: str, at: int) -> int:
        at = skip_space(text, at)
        if at == len(text):
            return at
        if text[at] != '"':
            return self._broken(at)
        self._read(Role.KEY)
        return at

    def _colon(self, text: str, at: int) -> int:
        at = skip_space(text, at)
        if at == len(text):
            return at
        if text[at] != ":":
            return self._broken(at)
        self._state = CallObject._member
        return at + 1

    def _member(self, text: str, at: int) -> int:
        at = skip_space(text, at)
        if at == len(text):
            return at
        character, role = text[at], self._role
        if role is Role.WRAPPER and character == "{" and not self._wrapped:
            self._wrapped, self._state = True, CallObject._first_key
            return at + 1
        if role is Role.WRAPPER:
            role = Role.NAME
        if role in (Role.NAME, Role.ARGUMENTS, Role.TYPE):
            if role in self._seen or character != ("{" if role is Role.ARGUMENTS else '"'):
                return self._broken(at)
            self._seen.add(role)
        if role is Role.ARGUMENTS:
            if self._name is None:
                self._early = []
            else:
                self._begin(self._name)
        self._read(role)
        return at

    def _read(self, role: Role) -> None:
        self._role, self._value, self._state = role, JsonValue(), CallObject._reading
        self._raw, self._raw_chars = [], 0

    def _reading(self, text: str, at: int) -> int:
        end = self._value.feed(text, at)
        piece = text[at:end]
        if self._role is Role.ARGUMENTS:
            if self._early is None:
                self._writer.arguments(piece)
            else:
                self._early.append(piece)
        elif self._role is not Role.OTHER:
            # Cut at the limit, not at the piece's end: where a text breaks must not depend on its pieces.
            room = MAX_NAME_CHARS - self._raw_chars
            if len(piece) > room:
                return self._broken(at + room)
            self._raw.append(piece)
            self._raw_chars += len(piece)
        if self._value.progress is Progress.BROKEN or (
            self._value.progress is Progress.COMPLETE and not self._accept()
        ):
            return self._broken(end)
        return end

    def _accept(self) -> bool:
        """Use the value that was just read; False when a call does not have it."""
        self._state = CallObject._after_member
        if self._role is Role.KEY:
            return self._accept_key(json.loads("".join(self._raw)))
        if self._role is Role.ARGUMENTS:
            self.arguments_complete = True
        elif self._role is Role.TYPE:
            return bool(json.loads("".join(self._raw)) == "function")
        elif self._role is Role.NAME:
            name: str = json.loads("".join(self._raw))
            if name not in self._names:
                return False
            self._name = name
            if self._early is not None:
                self._begin(name)
                self._writer.arguments("".join(self._early))
        return True

    def _accept_key(self, key: str) -> bool:
        self._role = self._roles.get(key, Role.OTHER)
        self._state = CallObject._colon
        decides = self._first_key_decides and not self._seen
        self._seen.add(Role.KEY)
        return self._role is not Role.OTHER or not decides

    def _after_member(self, text: str, at: int) -> int:
        at = skip_space(text, at)
        if at == len(text):
            return at
        if text[at] == "}":
            return self._closed(at)
        if text[at] != ",":
            return self._broken(at)
        self._state = CallObject._key
        return at + 1

    def _closed(self, at: int) -> int:
        if self._wrapped:
            self._wrapped, self._state = False, CallObject._after_member
            return at + 1
        if self._name is None:
            return self._broken(at)
        if not self.begun:
            self._begin(self._name)
            self._writer.arguments("{}")
            self.arguments_complete = True
        self.progress = Progress.COMPLETE
        return at + 1

    def _begin(self, name: str) -> None:
        self.begun = True
        self._writer.begin(name)

    def _broken(self, at: int) -> int:
        self.progress = Progress.BROKEN
        return at
