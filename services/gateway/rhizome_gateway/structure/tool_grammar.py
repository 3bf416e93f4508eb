"""Tool calls as a grammar, in the notation that a model writes them: a forced call cannot be anything else.

Only the arguments are free, within the tool's schema. Each schema is a part of its own, so that references
inside it keep their root.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rhizome_gateway.parsing.call_object import Role
from rhizome_gateway.parsing.formats import ToolFormat
from rhizome_gateway.parsing.json_calls import Notation
from rhizome_gateway.structure.pythonic_grammar import pythonic_call
from rhizome_gateway.structure.rules import Rules
from rhizome_gateway.structure.tool_spec import ToolSpec, arguments_grammar
from rhizome_grammar.spec import lark_string

__all__ = ["ToolCalls", "ToolSpec", "add_calls"]

MAX_CALLS = 64
"""Calls of one answer; a model without a sense of an end must not go on for ever."""
_COMMA = '", "'
_LINE = r'"\n"'


@dataclass(frozen=True, slots=True)
class ToolCalls:
    """Which calls an answer may or must hold.

    Attributes:
        tools: those that may be called, at least one; for a named choice the one.
        format: how the model writes calls.
        required: whether the answer must be calls and nothing else.
        parallel: whether there may be more than one call.
    """

    tools: Sequence[ToolSpec]
    format: ToolFormat
    required: bool
    parallel: bool = True

    def held_to_schemas(self) -> ToolCalls:
        """The same with every tool strict; itself where they are."""
        if not any(tool.strict is False for tool in self.tools):
            return self
        return replace(self, tools=[replace(tool, strict=True) for tool in self.tools])


def add_calls(rules: Rules, calls: ToolCalls, marker: Callable[[str], str]) -> None:
    """Add the rule `calls`, and what it needs.

    Args:
        rules: the grammar so far.
        calls: what may be called, and how often.
        marker: writes a marker, which may be a special token of the model, as an element of a rule.

    Raises:
        ApiError: 400; a tool cannot be written in this notation, or its schema is too large.
    """
    most = MAX_CALLS if calls.parallel else 1
    notation = calls.format.notation
    if notation is None:
        rules.add_choice("call", [pythonic_call(rules, i, tool) for i, tool in enumerate(calls.tools)])
        rules.add("calls", f'"[" {_repeated("call", _COMMA, most)} "]"')
        return
    tag = marker(notation.arguments_tag) if notation.arguments_tag else ""
    opening = marker(notation.opening)
    closing = marker(notation.closing) if notation.closing else ""
    # A model whose vocabulary has the tag was made to write names, not objects.
    if notation.named and (not notation.objects or _is_special(tag)):
        _add_named(rules, calls.tools, tag)
        rules.add("call", f"{opening} tool {closing}")
        rules.add("calls", _repeated("call", "", most))
        return
    _add_objects(rules, calls.tools, notation)
    if notation.bare:
        rules.add("calls", _repeated("object", _LINE, most))
    elif closing:
        rules.add("call", f"{opening} {_LINE} object {_LINE} {closing}")
        rules.add("calls", _repeated("call", _LINE, most))
    elif notation.arrays:
        rules.add("calls", f'{opening} "[" {_repeated("object", _COMMA, most)} "]"')
    else:
        rules.add("call", f"{opening} object")
        rules.add("calls", _repeated("call", _LINE, most))


def _add_objects(rules: Rules, tools: Sequence[ToolSpec], notation: Notation) -> None:
    """Add the rule `object`: a call as JSON.

    It is spelled in the pieces that a JSON schema's own grammar has, so that an answer that may be either can
    begin alike.
    """
    name_key = next(key for key, role in notation.roles.items() if role is Role.NAME)
    keys = [key for key, role in notation.roles.items() if role is Role.ARGUMENTS]
    # Where objects stand without a marker, models were shown Llama's word.
    arguments_key = "parameters" if notation.bare and "parameters" in keys else keys[0]
    alternatives = []
    for tool in tools:
        part = rules.add_part("arguments", arguments_grammar(tool), tool.param)
        alternatives.append(f'{_quoted(tool.name)} ", " {_quoted(arguments_key)} ": " {part}')
    rules.add_choice("tool", alternatives)
    rules.add("object", f'"{{" {_quoted(name_key)} ": " tool "}}"')


def _add_named(rules: Rules, tools: Sequence[ToolSpec], tag: str) -> None:
    """Add the rule `tool`: a name, a marker where there is one, arguments."""
    alternatives = []
    for tool in tools:
        part = rules.add_part("arguments", arguments_grammar(tool), tool.param)
        alternatives.append(f"{lark_string(tool.name)} {tag} {part}")
    rules.add_choice("tool", alternatives)


def _quoted(text: str) -> str:
    """A text as JSON writes it, as an element of a rule."""
    return lark_string(json.dumps(text))


def _is_special(element: str) -> bool:
    return element.startswith("<")


def _repeated(element: str, separator: str, most: int) -> str:
    """Once or several times; at most `most`."""
    return element if most == 1 else f"{element} ({separator} {element}){{0,{most - 1}}}"
