"""Leaves out of a JSON schema what binds nothing and the library would refuse all the same.

Generators write such keywords without being asked: pydantic `"format": "path"`, OpenAPI `"format": "int32"`,
zod `"propertyNames": {"type": "string"}`. Without them a schema matches the same values.
"""

from __future__ import annotations

import json
import re
from typing import Any

DEFINED_FORMATS = frozenset(
    {
        "date",
        "date-time",
        "duration",
        "email",
        "hostname",
        "idn-email",
        "idn-hostname",
        "ipv4",
        "ipv6",
        "iri",
        "iri-reference",
        "json-pointer",
        "regex",
        "relative-json-pointer",
        "time",
        "unknown",
        "uri",
        "uri-reference",
        "uri-template",
        "uuid",
    }
)
"""Those that JSON Schema gives a meaning, and the library's own; any other one is a note to the reader."""

_MAY_BIND_NOTHING = re.compile(r'"(?:format|uniqueItems|propertyNames)"')
_HOLDS_SCHEMA = frozenset(
    {
        "additionalItems",
        "additionalProperties",
        "contains",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
_HOLDS_SCHEMAS = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
_HOLDS_NAMED_SCHEMAS = frozenset(
    {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}
)


def without_annotations(text: str) -> str:
    """Take out the `format`, `uniqueItems` and `propertyNames` that every value satisfies.

    Args:
        text: a JSON schema, an object.

    Returns:
        The same text where there is nothing to take out.

    Raises:
        ValueError: it is nested too deeply, or has a number that is not finite.
    """
    if not _MAY_BIND_NOTHING.search(text):
        return text
    try:
        schema = json.loads(text)
        changed = _clean(schema)
        return json.dumps(schema, allow_nan=False) if changed else text
    except RecursionError:
        raise ValueError("json_schema is nested too deeply") from None


def _clean(schema: Any) -> bool:
    """Clean a schema and all schemas in it, in place; values in `enum` and the like are none."""
    changed = False
    pending = [schema]
    while pending:
        node = pending.pop()
        if not isinstance(node, dict):
            continue
        for name in [name for name, value in node.items() if _binds_nothing(name, value)]:
            del node[name]
            changed = True
        for name, value in node.items():
            if name in _HOLDS_SCHEMA and isinstance(value, dict):
                pending.append(value)
            elif name in _HOLDS_SCHEMAS and isinstance(value, list):
                pending.extend(value)
            elif name in _HOLDS_NAMED_SCHEMAS and isinstance(value, dict):
                pending.extend(value.values())
    return changed


def _binds_nothing(name: str, value: Any) -> bool:
    if name == "format":
        return isinstance(value, str) and value not in DEFINED_FORMATS
    if name == "uniqueItems":
        return value is False
    return name == "propertyNames" and value in (True, {}, {"type": "string"})
