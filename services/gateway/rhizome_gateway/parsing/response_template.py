r"""The checkpoint says itself how to read its output: `response_template` in `tokenizer_config.json`.

The format is that of transformers 5 (`utils/chat_parsing`, version 1): fields of the message, each with what
opens and closes its region and how its content is parsed. Understood here are

- thinking (`reasoning_content`, `reasoning` or `thinking`) between two literal markers;
- `content` with or without literal markers around it;
- `tool_calls` as JSON after a marker, as objects, arrays of objects, or with the name between marker and
  arguments (`open_pattern: "<call>(?P<name>\w+)"`), and `transform`s that say which key holds what.

Patterns are not run as regular expressions: they come with the checkpoint, and may take any time. Of them,
literals, white space at either end and that one group are understood. Everything else (arguments in XML,
JSON with other quotes, text that some pattern discards) is refused as a whole, and detection decides. In one
thing we differ: text outside all regions is shown, not discarded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from rhizome_gateway.parsing.call_object import ROLES, Role
from rhizome_gateway.parsing.formats import OutputFormats, ToolFormat
from rhizome_gateway.parsing.json_calls import Notation
from rhizome_gateway.parsing.markers import MarkerSearch
from rhizome_gateway.parsing.reasoning import ReasoningMarkers

_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_TEMPLATE_KEYS = {"version", "defaults", "fields", "start_anchor", "start_anchor_pattern"}
_FIELD_KEYS = {"open", "open_pattern", "close", "close_pattern", "content", "content_args"} | {
    "repeats",
    "join",
    "optional",
    "transform",
    "transform_each",
}
_NAME_GROUP = re.compile(r"\(\?P<name>(?:\\w|\[\^[^\]\\]{1,8}(?:\\n)?\]|\[\\w[.\\-]*\])\+\)")
_PLACEHOLDER = re.compile(r"\{(?:content\.)?(\w+)\}")


class _RefusedError(Exception):
    """The template says something that is not understood here."""


def read_response_template(template: object) -> OutputFormats | None:
    """Translate a template; None where there is none, or it is not understood."""
    if not isinstance(template, Mapping):
        return None
    try:
        return _formats(template)
    except (_RefusedError, ValueError):
        return None


def _formats(template: Mapping[str, Any]) -> OutputFormats:
    fields = template.get("fields")
    if template.get("version", 1) != 1 or not template.keys() <= _TEMPLATE_KEYS:
        _refuse()
    if not isinstance(fields, Mapping) or not fields.keys() <= {"content", "tool_calls", *_REASONING_FIELDS}:
        _refuse()
    for field in fields.values():
        if not isinstance(field, Mapping) or not field.keys() <= _FIELD_KEYS:
            _refuse()
    dropped = _content_markers(fields["content"]) if "content" in fields else ()
    thinking = [fields[name] for name in _REASONING_FIELDS if name in fields]
    if len(thinking) > 1:
        _refuse()
    tools = _tools(fields["tool_calls"], dropped) if "tool_calls" in fields else None
    if tools is None and (dropped or not thinking):
        _refuse()
    return OutputFormats(tools, _reasoning(thinking[0]) if thinking else None)


def _reasoning(field: Mapping[str, Any]) -> ReasoningMarkers:
    if _is_set(field, "open_pattern", "close_pattern", "transform") or field.get("content", "text") != "text":
        _refuse()
    markers = ReasoningMarkers(_literal(field, "open"), _literal(field, "close"))
    MarkerSearch([markers.opening, markers.closing])
    return markers


def _content_markers(field: Mapping[str, Any]) -> tuple[str, ...]:
    """Markers around the answer. What follows one that ends the turn is never generated."""
    if _is_set(field, "open_pattern", "transform", "join") or field.get("content", "text") != "text":
        _refuse()
    opening = (_literal(field, "open"),) if "open" in field else ()
    closing = field.get("close", [])
    if isinstance(closing, str):
        closing = [closing]
    if not isinstance(closing, list) or not all(isinstance(each, str) for each in closing):
        _refuse()
    return (*opening, *closing)


def _tools(field: Mapping[str, Any], dropped: tuple[str, ...]) -> ToolFormat:
    if field.get("content") != "json" or field.get("content_args") or _is_set(field, "close_pattern", "join"):
        _refuse()
    opening, after_name = _opening(field)
    closing = _literal(field, "close") if "close" in field else None
    named = after_name is not None
    notation = Notation(
        opening=opening,
        closing=closing,
        objects=not named,
        arrays=not named,
        named=named,
        arguments_tag=after_name or None,
        separators=",",
        roles=_roles(field, named),
        dropped=tuple(marker for marker in dict.fromkeys(dropped) if marker != closing),
    )
    MarkerSearch([opening, *([closing] if closing else []), *notation.dropped])
    return ToolFormat("response_template", notation)


def _opening(field: Mapping[str, Any]) -> tuple[str, str | None]:
    """The marker, and the literal after the name where a name follows the marker."""
    if "open_pattern" not in field:
        return _literal(field, "open"), None
    pattern = field["open_pattern"]
    if not isinstance(pattern, str) or "open" in field:
        _refuse()
    pattern = pattern.removeprefix(r"\s*").removesuffix(r"\s*")
    group = _NAME_GROUP.search(pattern)
    if group is None:
        return _unescaped(pattern) or _refuse(), None
    return _unescaped(pattern[: group.start()]) or _refuse(), _unescaped(pattern[group.end() :])


def _unescaped(pattern: str) -> str:
    """The text that a pattern without operators matches."""
    characters = []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        if character == "\\":
            position += 1
            character = pattern[position : position + 1]
            if character == "n":
                character = "\n"
            elif not character or character.isalnum():
                _refuse()
        elif character in ".^$*+?{}[]|()":
            _refuse()
        characters.append(character)
        position += 1
    return "".join(characters)


def _roles(field: Mapping[str, Any], named: bool) -> Mapping[str, Role]:
    """What the keys of a call mean, by the `transform` that makes OpenAI's form of it."""
    transform = field.get("transform")
    if transform is None:
        return ROLES if not named else _refuse()
    function = transform.get("function") if isinstance(transform, Mapping) else None
    if function == "{content}" and not named:
        return ROLES
    if not isinstance(function, Mapping) or function.keys() != {"name", "arguments"}:
        _refuse()
    if named:
        return ROLES if function == {"name": "{name}", "arguments": "{content}"} else _refuse()
    keys = []
    for key in ("name", "arguments"):
        placeholder = _PLACEHOLDER.fullmatch(function[key]) if isinstance(function[key], str) else None
        keys.append(placeholder.group(1) if placeholder else _refuse())
    return {keys[0]: Role.NAME, keys[1]: Role.ARGUMENTS}


def _literal(field: Mapping[str, Any], key: str) -> str:
    value = field.get(key)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) and value else _refuse()


def _is_set(field: Mapping[str, Any], *keys: str) -> bool:
    return any(field.get(key) is not None for key in keys)


def _refuse() -> NoReturn:
    raise _RefusedError
