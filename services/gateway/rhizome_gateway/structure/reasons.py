"""Why a grammar was refused, without the words of the client."""

from __future__ import annotations

import re

from rhizome_grammar.spec import Grammar

_SHORT = 4
"""Shorter words, such as `is`, are everybody's."""
_SCHEMA_WORDS = frozenset(
    """
    additionalItems additionalProperties allOf anchor anyOf array boolean comment const contains
    contentEncoding contentMediaType contentSchema default definitions defs dependencies dependentRequired
    dependentSchemas deprecated description dynamicAnchor dynamicRef else enum examples exclusiveMaximum
    exclusiveMinimum false format integer items maxContains maxItems maxLength maxProperties maximum
    minContains minItems minLength minProperties minimum multipleOf null number object oneOf pattern
    patternProperties prefixItems properties propertyNames readOnly recursiveAnchor recursiveRef required
    schema string then title true type unevaluatedItems unevaluatedProperties uniqueItems vocabulary writeOnly
    """.split()  # noqa: SIM905
)
"""Words of JSON Schema, which help whoever reads the reason."""


def public_reason(reason: str, grammar: Grammar) -> str:
    """Shorten a reason to what helps and repeats nothing that the client sent, in one line."""
    lines = reason.removeprefix(f"{grammar.kind}: ").splitlines()
    # The last line of a bad expression's report says what is wrong; the ones before it show the expression.
    line = next((line for line in lines if line.startswith("error: ")), lines[0]).removeprefix("error: ")
    grammars = (grammar, *(part for _, part in grammar.parts))
    sent = "\0".join(text for one in grammars for text in (one.text, *one.choices))
    return re.sub(r"\w+", lambda match: "…" if _is_sent(match[0], sent) else match[0], line).rstrip(".: ")


def _is_sent(word: str, sent: str) -> bool:
    return len(word) >= _SHORT and word not in _SCHEMA_WORDS and word in sent
