"""What can go wrong with a grammar, in words for the caller."""

from __future__ import annotations

import re

_MAX_LENGTH = 500
_REASONS = (
    ("NoExtension", "no text matches this grammar"),
    (
        "too many states",
        "the grammar has too many states; simplify its patterns or lower its repetition counts",
    ),
    ("too many expressions", "a pattern is too complex; simplify it or lower its repetition counts"),
    ("precomputation failed", "a pattern is too complex; simplify it or lower its repetition counts"),
    (
        "items; max is",
        "too many alternatives are open at once; use fewer optional properties or alternatives",
    ),
    ("schema too large", "the schema has too many combinations of anyOf and allOf"),
    ("too big (limit", "the grammar is too large; split it or use fewer alternatives"),
    ("recursion limit", "the schema is nested too deeply; at most about 120 levels are supported"),
    ("'coerce_one_of'", "oneOf is only supported where its branches exclude each other visibly; use anyOf"),
    ("failed: Default retriever", "a $ref points outside the schema; put the definition under $defs"),
)


class GrammarError(ValueError):
    """A grammar cannot be compiled or followed; the message is for the caller and says why."""


class CompilerBusyError(GrammarError):
    """Too many grammars wait to be compiled; the same grammar may compile later."""


def refusal(kind: str, reason: str) -> GrammarError:
    """Make the error of a grammar that cannot be compiled, from llguidance's reason."""
    if kind == "regex":
        # The expression was wrapped into a grammar; positions within that would only confuse.
        reason = re.sub(r"\Aat \d+\(\d+\): invalid regex .*? \(in regex\): ", "", reason, flags=re.DOTALL)
        reason = re.split(r"\n +\d+ \| start: /", reason, maxsplit=1)[0]
    return GrammarError(f"{kind}: {explained(reason)}")


def explained(reason: str) -> str:
    """Put llguidance's reason into words that somebody can act on; most stay as they are."""
    for sign, words in _REASONS:
        if sign in reason:
            return words
    # Behind these markers come the library's own state and a list of every special token.
    text = re.split(r"\n?<(?:non-verbose|state|grammar)|; following special tokens", reason, maxsplit=1)[0]
    text = text.strip()
    if len(text) <= _MAX_LENGTH:
        return text
    # The report of a long expression shows all of it before it says what is wrong.
    _, sign, wrong = text.rpartition("\nerror: ")
    return f"{text[:_MAX_LENGTH]} …{sign}{wrong[:80] if sign else ''}"
