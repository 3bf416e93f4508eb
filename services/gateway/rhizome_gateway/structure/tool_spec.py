"""A tool as far as grammars care: its name, and what its arguments must match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rhizome_gateway.errors import ApiError
from rhizome_gateway.structure.schema import schema_grammar
from rhizome_grammar.spec import Grammar

_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool that may be called.

    Attributes:
        name: what the call says.
        parameters: JSON schema of its arguments; None takes none.
        strict: False lets the arguments be any JSON object where the schema cannot be enforced; otherwise
            such a schema is refused.
        param: the field of the request that holds the schema.
    """

    name: str
    parameters: dict[str, Any] | None
    strict: bool | None
    param: str


def arguments_grammar(tool: ToolSpec) -> Grammar:
    """What the arguments of a call must match.

    Raises:
        ApiError: 400; they are not an object, or the schema is too large.
    """
    return schema_grammar(arguments_schema(tool), tool.param)


def arguments_schema(tool: ToolSpec) -> dict[str, Any]:
    """The schema of the arguments, which are an object whether the tool says so or not.

    Raises:
        ApiError: 400; they are declared to be something else.
    """
    if tool.parameters is None:
        return _NO_ARGUMENTS
    if tool.strict is False:
        return {"type": "object"}
    kind = tool.parameters.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise ApiError(
            400,
            f"{tool.param} must be a schema of type object: the arguments of a call have names.",
            code="invalid_json_schema",
            param=tool.param,
        )
    return {**tool.parameters, "type": "object"}
