"""A grammar as a caller writes it: plain values, checked as far as that is cheap."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

GrammarKind = Literal["json_schema", "json_object", "regex", "lark", "choice"]

MAX_BYTES: dict[GrammarKind, int] = {
    "json_schema": 256 * 1024,
    "json_object": 0,
    # Following a regular expression costs time quadratic in its length, at every token.
    "regex": 16 * 1024,
    "lark": 32 * 1024,
    "choice": 256 * 1024,
}
"""The most UTF-8 bytes of a grammar, by kind."""

# What a model most often saw: the separators of Python's json.dumps.
_FIXED_WHITESPACE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Bounded, because a model that is free to do so may write spaces for ever.
_FLEXIBLE_WHITESPACE = {
    "whitespace_flexible": True,
    "whitespace_pattern": r"[ \t\r\n]{1,40}",
    "item_separator": ",",
    "key_separator": ":",
}
_TOKEN_ID = re.compile(r"<\[[\s\d,^*-]*\]>")


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an output must conform to.

    Attributes:
        kind: the language it is written in.
        text: the schema, expression or grammar; empty for `json_object` and `choice`. A JSON schema is kept
            as text because the order of its properties is the order of the output.
        choices: the texts of a `choice`; each becomes possible as a whole output.
        flexible_whitespace: JSON may be laid out freely, in runs of at most 40 white-space characters;
            without it the separators are `, ` and `: `, and far more tokens are forced.

    Raises:
        ValueError: a field is empty, too large, or no JSON object; the message begins with its name.
    """

    kind: GrammarKind
    text: str = ""
    choices: tuple[str, ...] = ()
    flexible_whitespace: bool = False

    def __post_init__(self) -> None:
        if self.kind not in MAX_BYTES:
            raise ValueError(f"kind must be one of {', '.join(MAX_BYTES)}, not {self.kind!r}")
        if self.choices and self.kind != "choice":
            raise ValueError(f"choices belong to kind choice, not {self.kind}")
        if self.text and self.kind in ("choice", "json_object"):
            raise ValueError(f"text must be empty for kind {self.kind}")
        match self.kind:
            case "choice":
                self._check_choices()
            case "json_schema":
                self._check_size(self.text)
                _check_schema(self.text)
            case "regex" | "lark":
                self._check_size(self.text)
                if not self.text:
                    raise ValueError(f"{self.kind} must not be empty")
                if self.kind == "lark" and (match := _TOKEN_ID.search(self.text)):
                    raise ValueError(f"lark must not name tokens by id ({match[0]}); write their text")

    def to_llguidance(self) -> str:
        """Return the grammar in llguidance's own serialisation.

        Raises:
            ValueError: a schema is nested too deeply.
        """
        from llguidance import LLMatcher

        match self.kind:
            case "regex":
                return LLMatcher.grammar_from_regex(self.text)
            case "lark":
                return LLMatcher.grammar_from_lark(self.text)
            case "choice":
                # One terminal: as alternatives of a rule each choice would be an item of the parser's.
                return LLMatcher.grammar_from_lark(
                    "start: CHOICE\nCHOICE: " + " | ".join(map(_lark_string, self.choices))
                )
            case _:
                whitespace = _FLEXIBLE_WHITESPACE if self.flexible_whitespace else _FIXED_WHITESPACE
                schema = self.text if self.kind == "json_schema" else '{"type": "object"}'
                # Never lenient, whatever the schema asks for: an ignored keyword would be a broken promise.
                return LLMatcher.grammar_from_json_schema(
                    schema,
                    overrides={**whitespace, "lenient": False},  # type: ignore[arg-type]
                )

    def _check_choices(self) -> None:
        if not self.choices:
            raise ValueError("choice must have at least one text")
        if not all(self.choices):
            raise ValueError("choice must not contain an empty text")
        self._check_size("".join(self.choices))

    def _check_size(self, text: str) -> None:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise ValueError(f"{self.kind} must not contain lone surrogates") from None
        if size > MAX_BYTES[self.kind]:
            raise ValueError(f"{self.kind} must be at most {MAX_BYTES[self.kind]} bytes, not {size}")


def _check_schema(text: str) -> None:
    try:
        schema = json.loads(text)
    except RecursionError:
        raise ValueError("json_schema is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"json_schema is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ValueError(f"json_schema must be a JSON object, not {type(schema).__name__}")
    pending: list[object] = [schema]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pattern = value.get("pattern")
            if isinstance(pattern, str) and len(pattern) > MAX_BYTES["regex"]:
                raise ValueError(f"json_schema has a pattern of more than {MAX_BYTES['regex']} characters")
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _lark_string(text: str) -> str:
    # As JSON but for DEL, which JSON writes plainly and Lark's lexer refuses.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
