"""A call in Python's notation, `f(a=1, b="x")`, as rules.

Values are written as JSON, which is Python but for `true`, `false` and `null`; where these can be told apart
by the schema, Python's own words are used, and readers of this notation know both.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterator
from typing import Any

from rhizome_gateway.errors import ApiError
from rhizome_gateway.structure.rules import Rules
from rhizome_gateway.structure.schema import schema_grammar
from rhizome_gateway.structure.tool_spec import ToolSpec, arguments_schema
from rhizome_grammar.spec import lark_string

_ELSEWHERE = {"$ref", "anyOf", "oneOf", "allOf"}
"""Where a schema may have properties that it does not list itself."""
_DEFINITIONS = ("$defs", "definitions")
_ANNOTATIONS = {"title", "description", "default", "examples"}


def pythonic_call(rules: Rules, index: int, tool: ToolSpec) -> str:
    """Add the rules of a call; returns an alternative that writes it.

    Each declared argument may come once, required ones first; others cannot be written.

        f(a=@... , b=@... (, c=@...)? (, d=@...)? )         a, b required
        f( (c=@... rest_1 | d=@... rest_2)? )               none required; rest_1: (, d=@...)? rest_2

    Raises:
        ApiError: 400; names are no identifiers, or the schema has no list of properties.
    """
    schema = arguments_schema(tool)
    if tool.strict is False:  # of a schema that need not hold, only the names are left
        declared = (tool.parameters or {}).get("properties")
        schema = {"properties": dict.fromkeys(declared if isinstance(declared, dict) else (), True)}
    properties, required = _properties(schema, tool.param)
    values = {name: _value(rules, schema, value, tool.param) for name, value in properties.items()}
    needed = [name for name in values if name in required]
    optional = [name for name in values if name not in required]
    opening = lark_string(f"{tool.name}(")
    if needed:
        first = [_argument(name, values, comma=place > 0) for place, name in enumerate(needed)]
        return " ".join([opening, *first, *(_maybe(name, values) for name in optional), '")"'])
    if not optional:
        return f'{opening} ")"'
    for place, name in enumerate(optional[1:], 1):
        following = f" rest_{index}_{place + 1}" if place + 1 < len(optional) else ""
        rules.add(f"rest_{index}_{place}", _maybe(name, values) + following)
    starts = []
    for place, name in enumerate(optional, 1):
        following = f" rest_{index}_{place}" if place < len(optional) else ""
        starts.append(_argument(name, values) + following)
    rules.add_choice(f"first_{index}", starts)
    return f'{opening} first_{index}? ")"'


def _argument(name: str, values: dict[str, str], *, comma: bool = False) -> str:
    return f"{lark_string(', ' * comma + name + '=')} {values[name]}"


def _maybe(name: str, values: dict[str, str]) -> str:
    return f"({_argument(name, values, comma=True)})?"


def _properties(schema: dict[str, Any], param: str) -> tuple[dict[str, Any], list[str]]:
    """What may be given, and what of it must be."""
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    writable = isinstance(properties, dict) and all(
        name.isidentifier() and name.isascii() and not keyword.iskeyword(name) for name in properties
    )
    listed = isinstance(required, list) and all(name in properties for name in required)
    local = all(ref.startswith(tuple(f"#/{key}/" for key in _DEFINITIONS)) for ref in _references(schema))
    if not writable or not listed or not local or _ELSEWHERE & schema.keys():
        raise ApiError(
            400,
            f"{param} cannot be written as this model writes calls, f(name=value): it must list its "
            "properties, with names that are Python identifiers, and refer to $defs only.",
            code="invalid_json_schema",
            param=param,
        )
    return properties, required


def _references(schema: object) -> Iterator[str]:
    pending = [schema]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if isinstance(ref := value.get("$ref"), str):
                yield ref
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _value(rules: Rules, root: dict[str, Any], schema: Any, param: str) -> str:
    """What one argument may be, as an element of a rule."""
    if not isinstance(schema, dict):  # `true` is a schema, too
        schema = {} if schema else {"enum": []}
    match schema:
        case {"type": "boolean"} if not {"enum", "const"} & schema.keys():
            return '("True" | "False")'
        case {"type": "null"}:
            return '"None"'
    definitions = {key: root[key] for key in _DEFINITIONS if key in root}
    needed = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
    return rules.add_part("value", schema_grammar({**definitions, **needed}, param), param)
