"""GBNF, the notation of llama.cpp and XGrammar and so of SGLang and vLLM: rules over characters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_DEPTH = 28
"""Brackets within brackets; a terminal may hold no more once it is Lark."""
MAX_REPEATS = 10_000

_TOKEN = re.compile(
    r"""
      (?P<skip> \s+ | \#[^\n]* )
    | (?P<rule> [A-Za-z_][\w-]* \s* ::= )
    | (?P<name> [A-Za-z_][\w-]* )
    | (?P<text> "(?:[^"\\\n]|\\.)*" )
    | (?P<chars> \[(?:[^\]\\\n]|\\.)*\] )
    | (?P<times> [*+?] | \{\s*\d+\s*(?:,\s*(?:\d+\s*)?)?\} )
    | (?P<any> \. )
    | (?P<other> [()|] )
    """,
    re.VERBOSE | re.ASCII,
)
_FIRST_RULE = re.compile(r"(?:\s|\#[^\n]*(?:\n|\Z))*[A-Za-z_][\w-]*\s*::=", re.ASCII)
_CHAR = re.compile(r"\\x([0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\(.)|(.)", re.DOTALL)
_ITEMS = frozenset({"name", "text", "chars", "any", "times"})
_ESCAPES = {
    "0": "\0",
    "a": "\a",
    "b": "\b",
    "e": "\x1b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
}


@dataclass(frozen=True, slots=True)
class Text:
    """Characters, one after another."""

    text: str


@dataclass(frozen=True, slots=True)
class Regex:
    """A class of characters, as a regular expression."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Name:
    """Another rule."""

    name: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """One after another; nothing, if it is empty."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of several."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Times:
    """Again and again; without a limit where `most` is None."""

    node: Node
    least: int
    most: int | None


Node = Text | Regex | Name | Sequence | Either | Times


def is_gbnf(text: str) -> bool:
    """Whether a grammar begins with a rule of GBNF, as no Lark does."""
    return _FIRST_RULE.match(text) is not None


def read_gbnf(text: str) -> dict[str, Node]:
    """The rules of a grammar, in order, in time linear in its length.

    Raises:
        ValueError: it is no GBNF, or has something of which only its own server knows.
    """
    return _Reader(text).rules()


class _Reader:
    """Text to rules, by recursive descent; a rule ends where the next one begins."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._place = 0

    def rules(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        while self._place < len(self._tokens):
            kind, token = self._next()
            if kind != "rule":
                raise ValueError("grammar must consist of rules, name ::= and what it stands for")
            name = token[:-3].rstrip()
            if name in rules:
                raise ValueError("grammar has two rules of the same name")
            rules[name] = self._either(0)
        return rules

    def _next(self) -> tuple[str, str]:
        token = self._tokens[self._place]
        self._place += 1
        return token

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._place] if self._place < len(self._tokens) else ("end", "")

    def _either(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise ValueError(f"grammar may have brackets {MAX_DEPTH} deep at most")
        options = [self._sequence(depth)]
        while self._peek()[1] == "|":
            self._place += 1
            options.append(self._sequence(depth))
        return options[0] if len(options) == 1 else Either(tuple(options))

    def _sequence(self, depth: int) -> Node:
        items: list[Node] = []
        while (token := self._peek())[0] in _ITEMS or token[1] == "(":
            self._place += 1
            if token[0] != "times":
                items.append(self._item(*token, depth))
            elif items and self._tokens[self._place - 2][0] != "times":
                items[-1] = _repeated(items[-1], *_bounds(token[1]))
            else:
                raise ValueError("grammar repeats nothing: *, +, ? and {} follow what they repeat")
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def _item(self, kind: str, token: str, depth: int) -> Node:
        match kind:
            case "name":
                return Name(token)
            case "text":
                return Text("".join(_characters(token[1:-1])))
            case "chars":
                return Regex(_class(token[1:-1]))
        if kind == "any":
            return Regex(r"[\s\S]")
        inner = self._either(depth + 1)
        if self._peek()[1] != ")":
            raise ValueError("grammar has a bracket that is never closed")
        self._place += 1
        return inner


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            line, column = text.count("\n", 0, place) + 1, place - text.rfind("\n", 0, place)
            raise ValueError(f"grammar cannot be read at character {column} of line {line}")
        place = match.end()
        kind = match.lastgroup or ""
        if kind != "skip":
            yield kind, match[0]


def _repeated(node: Node, least: int, most: int | None) -> Node:
    return Text("") if most == 0 else Times(node, least, most)


def _bounds(times: str) -> tuple[int, int | None]:
    if times in "*+?":
        return int(times == "+"), 1 if times == "?" else None
    least, comma, most = (part.strip() for part in times[1:-1].partition(","))
    written = [number.lstrip("0") or "0" for number in (least, most) if number]
    if any(len(number) > 6 for number in written):  # Python reads no number of thousands of digits
        numbers = [MAX_REPEATS + 1]
    else:
        numbers = [int(number) for number in written]
    if max(numbers) > MAX_REPEATS:
        raise ValueError(f"grammar may repeat {MAX_REPEATS} times at most")
    if numbers[-1] < numbers[0]:
        raise ValueError("grammar has a repetition whose most is below its least")
    return numbers[0], numbers[-1] if most or not comma else None


def _characters(inside: str) -> Iterator[str]:
    """The characters that a string or class stands for."""
    for match in _CHAR.finditer(inside):
        code = match[1] or match[2] or match[3]
        if code:
            if int(code, 16) > 0x10FFFF or 0xD800 <= int(code, 16) < 0xE000:
                raise ValueError("grammar names a character that does not exist")
            yield chr(int(code, 16))
        elif match[4]:
            yield _escaped(match[4])
        else:
            yield match[5]


def _escaped(character: str) -> str:
    r"""What a backslash and a character stand for; classes such as `\d` are of regular expressions only."""
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isascii() and character.isalnum():
        raise ValueError(
            "grammar has a backslash before a letter or digit that means nothing there; it may be one of "
            + " ".join(f"\\{known}" for known in _ESCAPES)
            + ", \\xHH, \\uHHHH, \\UHHHHHHHH"
        )
    return character


def _class(inside: str) -> str:
    """A class of characters as a regular expression's."""
    negated = inside.startswith("^")
    parts: list[str] = []
    source = list(_CHAR.finditer(inside[negated:]))
    characters = list(_characters(inside[negated:]))
    if not characters:
        raise ValueError("grammar has an empty class of characters")
    place = 0
    while place < len(characters):
        ranged = place + 2 < len(characters) and source[place + 1][5] == "-"
        first, last = characters[place], characters[place + 2] if ranged else characters[place]
        if last < first:
            raise ValueError("grammar has a range of characters that ends before it begins")
        parts.append(_code(first) + ("-" + _code(last) if ranged else ""))
        place += 3 if ranged else 1
    return f"[{'^' if negated else ''}{''.join(parts)}]"


def _code(character: str) -> str:
    return character if character.isascii() and character.isalnum() else f"\\x{{{ord(character):x}}}"
