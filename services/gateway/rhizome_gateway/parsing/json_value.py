"""One JSON value, checked while it arrives.

The text of a tool call's arguments is passed on before it is complete, so each character is checked as it
comes: what is accepted is always the beginning of valid JSON, as `json.loads` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum

MAX_DEPTH = 128
"""Deeper values count as broken; readers of JSON give up somewhere, too."""
MAX_NUMBER_CHARS = 1000
"""Longer numbers count as broken; `json.loads` refuses integers of more than 4,300 digits."""

_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_CLOSES = {"{": "}", "[": "]"}
_WORDS = {"t": "rue", "f": "alse", "n": "ull"}
_DIGITS = "0123456789"
_NUMBER: dict[str, dict[str, str]] = {
    "start": {"-": "minus", "0": "zero", **dict.fromkeys("123456789", "integer")},
    "minus": {"0": "zero", **dict.fromkeys("123456789", "integer")},
    "zero": {".": "point", "e": "exponent", "E": "exponent"},
    "integer": {".": "point", "e": "exponent", "E": "exponent", **dict.fromkeys(_DIGITS, "integer")},
    "point": dict.fromkeys(_DIGITS, "fraction"),
    "fraction": {"e": "exponent", "E": "exponent", **dict.fromkeys(_DIGITS, "fraction")},
    "exponent": {"+": "sign", "-": "sign", **dict.fromkeys(_DIGITS, "power")},
    "sign": dict.fromkeys(_DIGITS, "power"),
    "power": dict.fromkeys(_DIGITS, "power"),
}
_WHOLE_NUMBERS = frozenset({"zero", "integer", "fraction", "power"})


class Progress(Enum):
    """How far a value is."""

    UNFINISHED = "unfinished"
    COMPLETE = "complete"
    BROKEN = "broken"


class JsonValue:
    """Reads one value from pieces of text.

    Attributes:
        progress: `BROKEN` when the next character cannot follow; that character is not consumed.
    """

    __slots__ = ("_in_key", "_left", "_number", "_open", "_state", "_word", "progress")

    def __init__(self) -> None:
        self.progress = Progress.UNFINISHED
        self._open: list[str] = []
        self._in_key = False
        self._number = ""
        self._word = ""
        self._left = 0
        self._state: Callable[[JsonValue, str, int], int] = JsonValue._value

    def feed(self, text: str, at: int) -> int:
        """Read `text` from `at` on; return where the value, or the part of it that is there, ends."""
        while at < len(text) and self.progress is Progress.UNFINISHED:
            at = self._state(self, text, at)
        return at

    def _value(self, text: str, at: int) -> int:
        at = skip_space(text, at)
        if at == len(text):
            return at
        character = text[at]
        if character in _CLOSES:
            return self._opened(character, at)
        if character == '"':
            self._in_key, self._state = False, JsonValue._string
        elif character in _WORDS:
            self._word, self._state = _WORDS[character], JsonValue._keyword
        elif character in _NUMBER["start"]:
            self._number, self._left = _NUMBER["start"][character], MAX_NUMBER_CHARS - 1
            self._state = JsonValue._digits
        else:
            return self._broken(at)
        return at + 1

    def _opened(self, bracket: str, at: int) -> int:
        if len(self._open) == MAX_DEPTH:
            return self._broken(at)
        self._open.append(bracket)
        self._state = JsonValue._first_key if bracket == "{" else JsonValue._first_item
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
        self._in_key, self._state = True, JsonValue._string
        return at + 1

    def _colon(self, text: str, at: int) -> int:
        at = skip_space(text, at)
        if at == len(text):
            return at
        if text[at] != ":":
            return self._broken(at)
        self._state = JsonValue._value
        return at + 1

    def _first_item(self, text: str, at: int) -> int:
        at = skip_space(text, at)
        if text.startswith("]", at):
            return self._closed(at)
        return self._value(text, at)

    def _after_value(self, text: str, at: int) -> int:
        at = skip_space(text, at)
        if at == len(text):
            return at
        bracket = self._open[-1]
        if text[at] == _CLOSES[bracket]:
            return self._closed(at)
        if text[at] != ",":
            return self._broken(at)
        self._state = JsonValue._key if bracket == "{" else JsonValue._value
        return at + 1

    def _string(self, text: str, at: int) -> int:
        at = _end(_PLAIN, text, at)
        if at == len(text):
            return at
        if text[at] == '"':
            if self._in_key:
                self._state = JsonValue._colon
            else:
                self._ended()
        elif text[at] == "\\":
            self._state = JsonValue._escape
        else:
            return self._broken(at)
        return at + 1

    def _escape(self, text: str, at: int) -> int:
        if text[at] == "u":
            self._left, self._state = 4, JsonValue._hexadecimal
        elif text[at] in '"\\/bfnrt':
            self._state = JsonValue._string
        else:
            return self._broken(at)
        return at + 1

    def _hexadecimal(self, text: str, at: int) -> int:
        if text[at] not in "0123456789abcdefABCDEF":
            return self._broken(at)
        self._left -= 1
        if not self._left:
            self._state = JsonValue._string
        return at + 1

    def _digits(self, text: str, at: int) -> int:
        following = _NUMBER[self._number].get(text[at])
        if following and self._left:
            self._number = following
            self._left -= 1
            return at + 1
        if following or self._number not in _WHOLE_NUMBERS:
            return self._broken(at)
        self._ended()
        return at

    def _keyword(self, text: str, at: int) -> int:
        if text[at] != self._word[0]:
            return self._broken(at)
        self._word = self._word[1:]
        if not self._word:
            self._ended()
        return at + 1

    def _closed(self, at: int) -> int:
        self._open.pop()
        self._ended()
        return at + 1

    def _ended(self) -> None:
        if self._open:
            self._state = JsonValue._after_value
        else:
            self.progress = Progress.COMPLETE

    def _broken(self, at: int) -> int:
        self.progress = Progress.BROKEN
        return at


def skip_space(text: str, at: int) -> int:
    """Where the white space of JSON that begins at `at` ends."""
    return _end(_SPACE, text, at)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at
