"""Tool calls in what a Llama model writes: `{"name": "f", "parameters": {...}}`, one or several.

A call is known to be one only when it is complete, so text is held back from a first `{` on, as long as it
may still be a call. What turns out to be none is shown as it is. Arguments are passed on exactly as the model
wrote them, never parsed and written again.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import NoReturn

_OPENING = re.compile(r'\s*\{\s*"(name|type|function|parameters|arguments)"\s*:')
_LONGEST_OPENING = 256
_FIRST_KEYS = ('"name"', '"type"', '"function"', '"parameters"', '"arguments"')
_SEPARATORS = " \t\r\n;,"
_SPACE = " \t\r\n"


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A call that the model wrote.

    Attributes:
        name: one of the declared functions.
        arguments: a JSON object, as the model wrote it.
        id: made up; the client sends it back with the result.
    """

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


class ToolCallParser:
    """Separates the text of an answer from its tool calls.

    Args:
        names: declared functions; calls of others are just text.
        parallel: whether there may be more than one call.
    """

    def __init__(self, names: Collection[str], *, parallel: bool = True) -> None:
        self._names = frozenset(names)
        self._parallel = parallel
        self._held: list[str] = []
        self._decided: bool | None = None

    def push(self, text: str) -> str:
        """Take the next piece of text; return what is surely not part of a call."""
        if self._decided is False:
            return text
        self._held.append(text)
        if self._decided is None:
            beginning = "".join(self._held)
            self._decided = _may_open(beginning)
            if self._decided is False:
                self._held = []
                return beginning
        return ""

    def finish(self) -> tuple[str, list[ParsedCall]]:
        """The answer is complete; return the text that was held back, or the calls."""
        held, self._held = "".join(self._held), []
        if self._decided is not True:
            return held, []
        calls = parse_calls(held, self._names)
        if not calls:
            return held, []
        return "", calls if self._parallel else calls[:1]


def parse_calls(text: str, names: Collection[str]) -> list[ParsedCall]:
    """Read a text that consists of calls and nothing else; empty when it does not."""
    calls: list[ParsedCall] = []
    position = _skip(text, 0, _SEPARATORS)
    try:
        while position < len(text):
            call, position = _call(text, position)
            if call.name not in names:
                return []
            calls.append(call)
            position = _skip(text, position, _SEPARATORS)
    except (ValueError, IndexError, RecursionError):
        return []
    return calls


def _may_open(text: str) -> bool | None:
    """Whether a text begins like a call; None while it is too short to tell."""
    if _OPENING.match(text):
        return True
    compact = "".join(text[:_LONGEST_OPENING].split())
    openings = ["{" + key + ":" for key in _FIRST_KEYS]
    if len(text) < _LONGEST_OPENING and any(opening.startswith(compact) for opening in openings):
        return None
    return False


def _call(text: str, position: int) -> tuple[ParsedCall, int]:
    """Read one object from `position` on; ValueError or IndexError when it is not a call."""
    spans, end = _members(text, position)
    if "function" in spans and "name" not in spans:
        inner = spans["function"][0]
        spans, _ = _members(text, inner)
    name_at, name_end = spans["name"] if "name" in spans else _not_a_call()
    arguments = spans.get("parameters") or spans.get("arguments")
    raw = text[slice(*arguments)] if arguments else "{}"
    if not raw.startswith("{"):
        _not_a_call()
    name = _DECODER.decode(text[name_at:name_end])
    if not isinstance(name, str):
        _not_a_call()
    return ParsedCall(name, raw), end


def _members(text: str, position: int) -> tuple[dict[str, tuple[int, int]], int]:
    """Where the values of a JSON object begin and end, by key, and where the object ends."""
    if text[position] != "{":
        _not_a_call()
    spans: dict[str, tuple[int, int]] = {}
    position = _skip(text, position + 1, _SPACE)
    while text[position] != "}":
        if text[position] != '"':
            _not_a_call()
        key, position = scanstring(text, position + 1, True)
        position = _skip(text, position, _SPACE)
        if text[position] != ":":
            _not_a_call()
        start = _skip(text, position + 1, _SPACE)
        _, position = _DECODER.raw_decode(text, start)
        spans[key] = (start, position)
        position = _skip(text, position, _SPACE)
        if text[position] == ",":
            position = _skip(text, position + 1, _SPACE)
            if text[position] == "}":
                _not_a_call()
        elif text[position] != "}":
            _not_a_call()
    return spans, position + 1


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _not_a_call(_: str = "") -> NoReturn:
    raise ValueError("not a tool call")


_DECODER = json.JSONDecoder(parse_constant=_not_a_call)
