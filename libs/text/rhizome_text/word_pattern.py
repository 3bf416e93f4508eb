"""The pattern by which a tokenizer cuts texts into words, as Python's `re` reads it; for ASCII alone.

The tokenizers package reads patterns as Oniguruma does. Where both mean the same in ASCII, a pattern is
translated; where they may not, it is refused.
"""

from __future__ import annotations

import re
from typing import Final

GPT2_PATTERN: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""That of tokenizers which name none."""

_MEMBERS: Final = {
    "L": "A-Za-z",
    "Lu": "A-Z",
    "Ll": "a-z",
    "Lt": "",
    "Lm": "",
    "Lo": "",
    "M": "",
    "N": "0-9",
    "P": r"!-#%-*,-/:;?@\[-\]_{}",
    "S": r"$+<->\^`|~",
}
"""Unicode's categories, as far as they are ASCII."""

_NOTHING: Final = r"[^\x00-\x7f]"
_SAME: Final = frozenset("sSrnt")
"""Escapes that mean the same."""
_CATEGORY = re.compile(r"\\p\{(\w+)\}|\\p(\w)")
_GROUP = re.compile(r"\(\?(?:i?:|=|!)")
_QUANTIFIER = re.compile(r"\{\d*,?\d*\}(?![+?])|[*+?][+?]?(?![+?*])")


class UnknownPatternError(ValueError):
    """A tokenizer cuts texts in a way that is not known here."""


def ascii_pattern(pattern: str) -> re.Pattern[str]:
    """Translate.

    Raises:
        UnknownPatternError: something in it may mean something else here.
    """
    written: list[str] = []
    place, in_class = 0, False
    while place < len(pattern):
        char = pattern[place]
        if char == "\\":
            text, place = _escape(pattern, place, in_class)
            written.append(text)
            continue
        if in_class:
            in_class = char != "]"
            if char == "[" or pattern.startswith("&&", place):
                raise _unknown(pattern)
        elif char == "[":
            in_class = True
            if pattern.startswith("[^", place):
                written.append("[")
                char, place = "^", place + 1
        elif char == "(":
            group = _GROUP.match(pattern, place)
            if group is None:
                raise _unknown(pattern)
            written.append(group[0])
            place = group.end()
            continue
        elif char in "*+?{":
            quantifier = _QUANTIFIER.match(pattern, place)
            if quantifier is None:
                raise _unknown(pattern)
            written.append(quantifier[0])
            place = quantifier.end()
            continue
        elif char in "^$.#" or not char.isascii():
            raise _unknown(pattern)
        written.append(char)
        place += 1
    try:
        translated = re.compile("".join(written), re.ASCII)
    except re.error as error:
        raise _unknown(pattern) from error
    if translated.match("") is not None:  # where nothing is found, the two go on differently
        raise _unknown(pattern)
    return translated


def _escape(pattern: str, place: int, in_class: bool) -> tuple[str, int]:
    """What begins with a backslash, and where it ends."""
    category = _CATEGORY.match(pattern, place)
    if category is not None:
        members = _MEMBERS.get(category[1] or category[2])
        if members is None:
            raise _unknown(pattern)
        if in_class:
            return members or r"\x80", category.end()  # an empty class would take the bracket behind it
        return f"[{members}]" if members else _NOTHING, category.end()
    escaped = pattern[place + 1 : place + 2]
    if escaped not in _SAME and (not escaped.isascii() or escaped.isalnum() or not escaped):
        raise _unknown(pattern)
    return pattern[place : place + 2], place + 2


def _unknown(pattern: str) -> UnknownPatternError:
    return UnknownPatternError(f"this pattern is not known to mean the same here: {pattern}")
