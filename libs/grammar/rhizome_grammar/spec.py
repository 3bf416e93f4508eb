"""A grammar as a caller writes it: plain values, checked as far as that is cheap."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

from rhizome_grammar.annotations import without_annotations

GrammarKind = Literal["json_schema", "json_object", "regex", "lark", "choice"]

MAX_BYTES: dict[GrammarKind, int] = {
    "json_schema": 256 * 1024,
    "json_object": 0,
    # Following a regular expression costs time quadratic in its length, at every token.
    "regex": 16 * 1024,
    "lark": 32 * 1024,
    "choice": 256 * 1024,
}
"""The most UTF-8 bytes of a grammar, by kind; in one with parts, of all grammars of a kind together."""
MAX_PARTS = 1024

# What a model most often saw: the separators of Python's json.dumps.
_FIXED_WHITESPACE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Bounded, because a model that is free to do so may write spaces for ever.
_FLEXIBLE_WHITESPACE = {
    "whitespace_flexible": True,
    "whitespace_pattern": r"[ \t\r\n]{1,40}",
    "item_separator": ",",
    "key_separator": ":",
}
_TOKEN_IDS = re.compile(r"<\[([\s\d,^*-]*)\]>")
_PART_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


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
        parts: name and grammar of what a `lark` refers to as `@name`. Each keeps rules and options of its
            own, and has no parts.

    Raises:
        ValueError: a field is empty, too large, or no JSON object; the message begins with its name.
    """

    kind: GrammarKind
    text: str = ""
    choices: tuple[str, ...] = ()
    flexible_whitespace: bool = False
    parts: tuple[tuple[str, Grammar], ...] = ()

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
                if self.kind == "lark":
                    _ = self.token_ids
        if self.parts:
            self._check_parts()

    @property
    def token_ids(self) -> frozenset[int]:
        """Tokens that a `lark` names by id, `<[128009]>`; only a tokenizer can tell whether they are special.

        Raises:
            ValueError: it names ranges or everything but some tokens, which could be any text.
        """
        if self.kind != "lark":
            return frozenset()
        ids = set()
        for match in _TOKEN_IDS.finditer(self.text):
            if not re.fullmatch(r"\d{1,9}", match[1], re.ASCII):
                raise ValueError("lark may name single tokens by id, as in <[128009]>, but no ranges")
            ids.add(int(match[1]))
        return frozenset(ids)

    def to_llguidance(self) -> str:
        """Return the grammar in llguidance's own serialisation.

        Raises:
            ValueError: a schema is nested too deeply.
        """
        from llguidance import LLMatcher

        if self.parts:
            named = [("start", replace(self, parts=())), *self.parts]
            return json.dumps({"grammars": [_named(name, part) for name, part in named]})
        match self.kind:
            case "regex":
                return LLMatcher.grammar_from_regex(self.text)
            case "lark":
                return LLMatcher.grammar_from_lark(self.text)
            case "choice":
                # One terminal: as alternatives of a rule each choice would be an item of the parser's.
                return LLMatcher.grammar_from_lark(
                    "start: CHOICE\nCHOICE: " + " | ".join(map(lark_string, self.choices))
                )
            case _:
                whitespace = _FLEXIBLE_WHITESPACE if self.flexible_whitespace else _FIXED_WHITESPACE
                wanted = self.text if self.kind == "json_schema" else '{"type": "object"}'
                schema = without_annotations(wanted)
                # Never lenient, whatever the schema asks for: an ignored keyword would be a broken promise.
                return LLMatcher.grammar_from_json_schema(
                    schema,
                    overrides={**whitespace, "lenient": False},  # type: ignore[arg-type]
                )

    def _check_parts(self) -> None:
        if self.kind != "lark":
            raise ValueError(f"parts belong to kind lark, not {self.kind}")
        if len(self.parts) > MAX_PARTS:
            raise ValueError(f"parts must be at most {MAX_PARTS}, not {len(self.parts)}")
        if not all(_PART_NAME.fullmatch(name) and name != "start" for name, _ in self.parts):
            raise ValueError("parts must have names of lower-case letters, digits and _, and not be start")
        if len(dict(self.parts)) < len(self.parts):
            raise ValueError("parts must have different names")
        if any(part.parts for _, part in self.parts):
            raise ValueError("parts must not have parts of their own")
        sizes: Counter[GrammarKind] = Counter({"lark": len(self.text.encode())})
        for _, part in self.parts:
            sizes[part.kind] += len(part.text.encode()) + sum(len(text.encode()) for text in part.choices)
        for kind, size in sizes.items():
            if size > MAX_BYTES[kind]:
                raise ValueError(f"{kind} must be at most {MAX_BYTES[kind]} bytes in all parts, not {size}")

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


def _named(name: str, grammar: Grammar) -> dict[str, Any]:
    """A grammar as one of several in llguidance's serialisation."""
    text = grammar.to_llguidance()
    if grammar.kind in ("lark", "choice"):  # the library's serialisation of these is the text itself
        return {"name": name, "lark_grammar": text}
    return {**json.loads(text)["grammars"][0], "name": name}


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


def lark_string(text: str) -> str:
    """Write a text as a string of a Lark grammar."""
    # As JSON but for DEL, which JSON writes plainly and Lark's lexer refuses.
    # "<[" within a string is text, and not the beginning of a token's id.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f").replace("<[", "<\\u005b")
