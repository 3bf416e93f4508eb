"""The pattern by which a tokenizer cuts texts into words, as Python's `re` reads it; for ASCII alone.

The tokenizers package reads patterns as Oniguruma does. Where both mean the same in ASCII, a pattern is
translated; where they may not, it is refused.
"""

from __future__ import annotations

import re

# Python's parser of patterns. It was `sre_parse` before 3.11 and has had no public name since.
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, Final

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
_ASCII: Final = frozenset(map(chr, range(128)))
_BLANK: Final = frozenset(char for char in _ASCII if re.match(r"\s", char))
_SOLID: Final = _ASCII - _BLANK
_REPEATS: Final = frozenset((op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT))
_SINGLE: Final = frozenset((op.LITERAL, op.NOT_LITERAL, op.IN))
_A_WORD: Final = parser.parse(r"\S").data
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


def begins_words_at_spaces(pattern: re.Pattern[str]) -> bool:
    """Whether a space behind a character that is no white space always begins a word.

    So it is where nothing that the pattern finds has a space behind such a character, and nothing looks ahead
    but to see that no word follows: then a text can be cut there, and its parts by themselves.
    """
    return not _spans_a_space(parser.parse(pattern.pattern, re.ASCII).data)


def _spans_a_space(items: list[tuple[Any, Any]]) -> bool:
    """Whether a sequence may match a space somewhere behind a character that is no white space."""
    solid = False
    for kind, argument in items:
        if kind in _REPEATS:
            most, inside = argument[1], argument[2].data
            chars = _chars(inside)
            twice = most != 1 and " " in chars and not chars.isdisjoint(_SOLID)
        elif kind is op.SUBPATTERN:
            inside, twice = argument[3].data, False
            chars = _chars(inside)
        elif kind is op.BRANCH:
            branches = [branch.data for branch in argument[1]]
            inside, twice = [], any(map(_spans_a_space, branches))
            chars = frozenset[str]().union(*map(_chars, branches))
        elif kind is op.ASSERT_NOT and (argument[0], argument[1].data) == (1, _A_WORD):
            continue
        elif kind in _SINGLE:
            inside, twice, chars = [], False, _chars([(kind, argument)])
        else:
            return True
        if twice or (solid and " " in chars) or _spans_a_space(inside):
            return True
        solid = solid or not chars.isdisjoint(_SOLID)
    return False


def _chars(items: list[tuple[Any, Any]]) -> frozenset[str]:
    """The characters that a sequence may match anywhere."""
    found = frozenset[str]()
    for kind, argument in items:
        if kind in _REPEATS:
            found |= _chars(argument[2].data)
        elif kind is op.SUBPATTERN:
            found |= _chars(argument[3].data)
        elif kind is op.BRANCH:
            found = found.union(*(_chars(branch.data) for branch in argument[1]))
        elif kind is op.LITERAL:
            found |= {chr(argument).lower(), chr(argument).upper()}
        elif kind is op.NOT_LITERAL:
            found |= _ASCII - {chr(argument)}
        elif kind is op.IN:
            found |= _members(argument)
    return found


def _members(written: list[tuple[Any, Any]]) -> frozenset[str]:
    found = frozenset[str]()
    for kind, argument in written:
        if kind is op.LITERAL:
            found |= {chr(argument)}
        elif kind is op.RANGE:
            found |= {chr(code) for code in range(argument[0], argument[1] + 1)}
        elif kind is op.CATEGORY:
            found |= _BLANK if argument is op.CATEGORY_SPACE else _SOLID
    return _ASCII - found if written[0][0] is op.NEGATE else found


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
