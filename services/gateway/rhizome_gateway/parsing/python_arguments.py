"""The arguments of a call in Python: where they end, and what they are as JSON."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable

from rhizome_gateway.parsing.json_value import Progress

MAX_DEPTH = 64
"""Deeper brackets count as broken; Python's parser has such a limit as well."""

_PLAIN = re.compile(r"[\w\s,:=.+\-]*")
"""What stands between strings and brackets; no operators, so that Python's parser has little to do."""
_IN_STRING = {"'": re.compile(r"[^'\\\n]*"), '"': re.compile(r'[^"\\\n]*')}
_CLOSES = {"(": ")", "[": "]", "{": "}"}
_CONSTANTS = {"true": True, "false": False, "null": None}


class ArgumentsEnd:
    """Finds the parenthesis that closes a call, in pieces of text that begin after the opening one.

    Attributes:
        progress: `COMPLETE` after the closing parenthesis; `BROKEN` at what no arguments contain.
    """

    __slots__ = ("_open", "_quote", "_quotes", "_state", "_triple", "progress")

    def __init__(self) -> None:
        self.progress = Progress.UNFINISHED
        self._open = ["("]
        self._quote = ""
        self._quotes = 0
        self._triple = False
        self._state: Callable[[ArgumentsEnd, str, int], int] = ArgumentsEnd._code

    def feed(self, text: str, at: int) -> int:
        """Read `text` from `at` on; return where the arguments, or the part of them that is there, end."""
        while at < len(text) and self.progress is Progress.UNFINISHED:
            at = self._state(self, text, at)
        return at

    def _code(self, text: str, at: int) -> int:
        found = _PLAIN.match(text, at)
        at = found.end() if found else at
        if at == len(text):
            return at
        character = text[at]
        if character in _CLOSES and len(self._open) < MAX_DEPTH:
            self._open.append(character)
        elif character == _CLOSES[self._open[-1]]:
            self._open.pop()
            if not self._open:
                self.progress = Progress.COMPLETE
        elif character in _IN_STRING:
            self._quote, self._quotes, self._state = character, 1, ArgumentsEnd._opening_quotes
        else:
            self.progress = Progress.BROKEN
            return at
        return at + 1

    def _opening_quotes(self, text: str, at: int) -> int:
        """After one or two quotes: an empty string, or the beginning of one."""
        if text[at] == self._quote:
            self._quotes += 1
            if self._quotes == 3:
                self._triple, self._quotes, self._state = True, 0, ArgumentsEnd._triple_string
            return at + 1
        self._state = ArgumentsEnd._string if self._quotes == 1 else ArgumentsEnd._code
        self._triple = False
        return at

    def _string(self, text: str, at: int) -> int:
        found = _IN_STRING[self._quote].match(text, at)
        at = found.end() if found else at
        if at == len(text):
            return at
        if text[at] == "\n":
            self.progress = Progress.BROKEN
            return at
        self._state = ArgumentsEnd._code if text[at] == self._quote else ArgumentsEnd._escape
        return at + 1

    def _triple_string(self, text: str, at: int) -> int:
        if text[at] == self._quote:
            self._quotes += 1
            if self._quotes == 3:
                self._state = ArgumentsEnd._code
        else:
            self._quotes = 0
            if text[at] == "\\":
                self._state = ArgumentsEnd._escape
        return at + 1

    def _escape(self, text: str, at: int) -> int:
        self._state = ArgumentsEnd._triple_string if self._triple else ArgumentsEnd._string
        return at + 1


def to_json(arguments: str) -> str | None:
    """Translate `a=1, b="x")` to a JSON object; None where it is not keywords with literal values."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a string such as "\d" is no mistake of ours
            call = ast.parse(f"f({arguments}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            return None
        names = [keyword.arg for keyword in call.keywords]
        if None in names or len(set(names)) < len(names):
            return None
        return dump_json({str(keyword.arg): _literal(keyword.value) for keyword in call.keywords})
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def dump_json(value: object) -> str:
    """Write JSON without escapes where that can be sent.

    Raises:
        ValueError: it has a number that JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if text.isascii() or _is_whole(text) else json.dumps(value, allow_nan=False)


def _is_whole(text: str) -> bool:
    """Whether a text has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _literal(node: ast.expr) -> object:
    if isinstance(node, ast.Constant) and (
        node.value is None or isinstance(node.value, str | bool | int | float)
    ):
        return node.value
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        operand = node.operand
        if isinstance(operand, ast.Constant) and type(operand.value) in (int, float):
            return -operand.value  # type: ignore[operator]
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {_key(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True)}
    raise ValueError("not a literal that JSON has")


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError("not a key that JSON has")
