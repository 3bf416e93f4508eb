"""Messages and tools as a chat template knows them.

Content is text, arguments are objects, what is absent has no key. A developer speaks as `system` to templates
that know no other, and reasoning goes by the names that the template reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rhizome_gateway.errors import ApiError
from rhizome_gateway.http.json_depth import json_depth_ok
from rhizome_gateway.parsing.reasoning import ReasoningMarkers
from rhizome_gateway.prompt.message import ChatMessage, ToolCall
from rhizome_gateway.prompt.written_arguments import certain_object
from rhizome_text.chat_template import REASONING_NAMES, ChatTemplate

MAX_ARGUMENT_DEPTH = 256
"""Templates and what prepares their texts go down by recursion."""


class TemplateMessages:
    """Writes messages for one template; off the event loop where they are long.

    Args:
        template: the template.
        markers: around the thinking in the model's own text; None where it does not think.
    """

    def __init__(self, template: ChatTemplate, markers: ReasoningMarkers | None) -> None:
        source = template.source
        self._knows_developer = "developer" in source
        self.reasoning_names = [name for name in REASONING_NAMES if re.search(rf"\b{name}\b", source)]
        self._markers = markers

    def write(self, messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
        """All messages.

        Raises:
            ApiError: 400; the arguments of a call are no JSON object, or nested too deeply.
        """
        return [self._message(message, index) for index, message in enumerate(messages)]

    def with_reasoning_apart(self, message: ChatMessage) -> ChatMessage:
        """An answer whose text begins with its thinking, as some clients send it back.

        The template writes the markers itself then; in text they would be what somebody typed.
        """
        content, markers = message.content, self._markers
        if (
            message.role != "assistant"
            or message.reasoning is not None
            or not content
            or markers is None
            or not self.reasoning_names
        ):
            return message
        opening, closing = markers.opening.strip(), markers.closing.strip()
        begun = content.lstrip()
        if not begun.startswith(opening):
            return message
        thought, closed, answer = begun[len(opening) :].partition(closing)
        thought = thought.strip("\n") if closed else thought.lstrip("\n")
        return replace(message, reasoning=thought, content=answer.lstrip("\n"))

    def _message(self, message: ChatMessage, index: int) -> dict[str, Any]:
        message = self.with_reasoning_apart(message)
        role = "system" if message.role == "developer" and not self._knows_developer else message.role
        entry: dict[str, Any] = {"role": role, "content": message.content or ""}
        if message.reasoning is not None:
            entry |= dict.fromkeys(self.reasoning_names, message.reasoning)
        if message.name is not None:
            entry["name"] = message.name
        if message.tool_call_id is not None:
            entry["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            entry["tool_calls"] = [
                _call(call, f"messages[{index}].tool_calls[{position}].function.arguments")
                for position, call in enumerate(message.tool_calls)
            ]
        return entry


def template_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools as the client declared them, less what it set to null; schemas may hold nulls of their own."""
    return [
        {**tool, "function": {name: value for name, value in tool["function"].items() if value is not None}}
        for tool in tools
    ]


def _call(call: ToolCall, field: str) -> dict[str, Any]:
    function = {"name": call.name, "arguments": _arguments(call.arguments, field)}
    entry = {"type": "function", "function": function}
    return entry if call.id is None else {"id": call.id, **entry}


def _arguments(arguments: str | Mapping[str, Any] | None, field: str) -> dict[str, Any]:
    if isinstance(arguments, Mapping):
        return dict(arguments)
    value = certain_object(arguments or "{}")
    if value is None:
        raise ApiError(400, f"'{field}' must be a JSON object.", code="invalid_value", param=field)
    if isinstance(arguments, str) and not json_depth_ok(arguments.encode(), MAX_ARGUMENT_DEPTH) and value:
        raise ApiError(
            400,
            f"'{field}' may be nested {MAX_ARGUMENT_DEPTH} levels deep at most.",
            code="invalid_value",
            param=field,
        )
    return value
