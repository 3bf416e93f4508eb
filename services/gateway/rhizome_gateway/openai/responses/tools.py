"""Tools as clients declare them, and as functions that any chat template can show.

function                    a function
custom                      a function with one string, `input`
namespace with tools        its tools, with the namespace's name before theirs
anything else               is OpenAI's to run, and left out
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rhizome_gateway.schema.fields import Fields, refuse

NAME = r"^[a-zA-Z0-9_.-]{1,128}$"
_SEPARATOR = "__"
_INPUT_SCHEMA = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


class InputFormat(Fields):
    """What the input of a custom tool looks like."""

    type: Literal["text", "grammar"]
    syntax: Literal["lark", "regex"] | None = None
    definition: str | None = None

    @model_validator(mode="after")
    def _has_its_grammar(self) -> Self:
        if self.type == "grammar" and (self.syntax is None or self.definition is None):
            raise refuse("invalid_value", "A format of type 'grammar' must have 'syntax' and 'definition'.")
        return self


class DeclaredTool(Fields):
    """A tool; which fields it has depends on its type. Of tools that are left out only the type is read."""

    type: str = Field(min_length=1)
    name: str | None = Field(None, pattern=NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: InputFormat | None = None
    tools: list[DeclaredTool] | None = Field(None, description="of a namespace")

    @model_validator(mode="before")
    @classmethod
    def _is_whole(cls, tool: Any) -> Any:
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind == "function" and isinstance(tool.get("function"), dict):
            raise refuse(
                "invalid_value",
                "A function is declared as {{type, name, description, parameters}} here, without 'function'.",
            )
        if kind in ("function", "custom", "namespace"):
            if tool.get("name") is None:
                raise refuse("invalid_value", "A tool must have a 'name'.")
            return tool
        return {"type": kind} if isinstance(kind, str) else tool

    @model_validator(mode="after")
    def _is_no_deeper(self) -> Self:
        if self.type == "namespace" and any(tool.type == "namespace" for tool in self.tools or ()):
            raise refuse("invalid_value", "A namespace must not hold namespaces.")
        return self


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the client runs.

    Attributes:
        declared: as the client declared it.
        name: its name there.
        namespace: the namespace's name, where it is in one.
        param: where it stands in the request.
    """

    declared: DeclaredTool
    name: str
    namespace: str | None
    param: str

    @property
    def custom(self) -> bool:
        """Whether it takes text instead of arguments."""
        return self.declared.type == "custom"

    @property
    def function_name(self) -> str:
        """The name that the model knows."""
        return function_name(self.name, self.namespace)

    def as_function(self) -> dict[str, Any]:
        """It, as a tool of the chat API."""
        function: dict[str, Any] = {"name": self.function_name}
        description = _described(self.declared)
        if description:
            function["description"] = description
        if self.custom:
            function["parameters"] = _INPUT_SCHEMA
            return {"type": "function", "function": function}
        if self.declared.parameters is not None:
            function["parameters"] = self.declared.parameters
        if self.declared.strict is not None:
            function["strict"] = self.declared.strict
        return {"type": "function", "function": function}


def function_name(name: str, namespace: str | None) -> str:
    """The name under which the model knows a tool."""
    if namespace is None:
        return name
    return f"{namespace.removesuffix(_SEPARATOR)}{_SEPARATOR}{name}"


def usable_tools(declared: Sequence[DeclaredTool]) -> list[Tool]:
    """The tools that the client runs, in their order."""
    return list(_usable(declared, None, "tools"))


def left_out(declared: Sequence[DeclaredTool]) -> list[str]:
    """The types of the tools that are not offered to the model."""
    within = [inner for tool in declared for inner in tool.tools or ()]
    known = ("function", "custom", "namespace")
    return list(dict.fromkeys(tool.type for tool in (*declared, *within) if tool.type not in known))


def _usable(declared: Sequence[DeclaredTool], namespace: str | None, param: str) -> Iterator[Tool]:
    for index, tool in enumerate(declared):
        if tool.name is None:
            continue
        if tool.type == "namespace":
            yield from _usable(tool.tools or (), tool.name, f"{param}[{index}].tools")
        else:
            yield Tool(tool, tool.name, namespace, f"{param}[{index}]")


def _described(tool: DeclaredTool) -> str:
    """A grammar of the input is told to the model."""
    form = tool.format
    if form is None or form.type == "text":
        return tool.description or ""
    kind = "Lark grammar" if form.syntax == "lark" else "regular expression"
    rule = f"The input must match this {kind}:\n{form.definition}"
    return f"{tool.description}\n\n{rule}" if tool.description else rule
