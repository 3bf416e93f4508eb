"""A request of the Responses API becomes one of the chat API, which is what the gateway plans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rhizome_gateway.errors import ApiError
from rhizome_gateway.openai.chat.request import ChatCompletionRequest
from rhizome_gateway.openai.responses.conversation import chat_messages
from rhizome_gateway.openai.responses.request import (
    InputTokensRequest,
    ResponsesRequest,
    TextFormat,
    ToolPolicy,
)
from rhizome_gateway.openai.responses.tools import Tool, usable_tools
from rhizome_gateway.schema.sampling import SamplingFields
from rhizome_gateway.schema.validation import validate

_TOOL_PARAM = re.compile(r"tools\[(\d+)\]\.function(?=\.|$)")
_PARAMS = {
    "response_format.json_schema.schema": "text.format.schema",
    "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
}
"""Our names of the chat API's fields."""


@dataclass(frozen=True, slots=True)
class Translated:
    """A request in the chat API's form.

    Attributes:
        chat: the request; its tools are those that may be called.
        shown_tools: all tools, as `plan_chat` wants them: the prompt shows them; None without any.
        callable_tools: those of `chat`, in the same order.
    """

    chat: ChatCompletionRequest
    shown_tools: list[dict[str, Any]] | None
    callable_tools: Sequence[Tool]

    def error(self, error: ApiError) -> ApiError:
        """An error about the chat request, as one about the request that the client sent."""
        return _in_our_words(error, self.callable_tools)


def chat_request(request: InputTokensRequest) -> Translated:
    """Translate.

    Raises:
        ApiError: 400; the conversation or something it asks for cannot be served.
    """
    tools = usable_tools(request.tools or ())
    names = [tool.function_name for tool in tools]
    if len(set(names)) < len(names):
        raise ApiError(400, "tools must have different names.", code="invalid_value", param="tools")
    allowed, choice = _tool_choice(request.tool_choice, tools)
    fields: dict[str, Any] = {
        "model": request.model,
        "messages": chat_messages(request.instructions, request.input),
        "tools": [tool.as_function() for tool in allowed] or None,
        "tool_choice": choice,
        "parallel_tool_calls": request.parallel_tool_calls if allowed else None,
        "reasoning_effort": request.reasoning.effort if request.reasoning else None,
        "response_format": _response_format(request.text.format if request.text else None),
    }
    if isinstance(request, ResponsesRequest):
        fields |= _generation(request)
    try:
        chat = validate(ChatCompletionRequest, fields)
    except ApiError as error:
        raise _in_our_words(error, allowed) from None
    return Translated(chat, [tool.as_function() for tool in tools] or None, allowed)


def _generation(request: ResponsesRequest) -> dict[str, Any]:
    """What matters to the answer, and to where it is made."""
    fields: dict[str, Any] = {name: getattr(request, name) for name in SamplingFields.model_fields}
    fields |= {"max_completion_tokens": request.max_output_tokens, "stream": request.stream}
    if request.wants_logprobs:
        fields |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    return fields


def _response_format(wanted: TextFormat | None) -> dict[str, Any] | None:
    if wanted is None or wanted.type != "json_schema":
        return None if wanted is None else {"type": wanted.type}
    schema = {"name": wanted.name, "schema": wanted.schema_, "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": schema}


def _tool_choice(
    policy: ToolPolicy | None, tools: Sequence[Tool]
) -> tuple[Sequence[Tool], str | dict[str, Any] | None]:
    """The tools that may be called, and the chat API's word for whether they must be."""
    if policy is None:
        return tools, None
    if policy.type == "allowed_tools":
        named = {(tool.type, tool.name) for tool in policy.tools or ()}
        allowed = [tool for tool in tools if _kind_and_name(tool) in named]
        if len(allowed) < len(named):
            raise _unknown_choice()
        return allowed, policy.mode
    if policy.type in ("function", "custom"):
        wanted = [tool for tool in tools if _kind_and_name(tool) == (policy.type, policy.name)]
        if not wanted:
            raise _unknown_choice()
        return tools, {"type": "function", "function": {"name": wanted[0].function_name}}
    return tools, policy.type if tools or policy.type == "required" else None


def _kind_and_name(tool: Tool) -> tuple[str, str]:
    return ("custom" if tool.custom else "function", tool.function_name)


def _unknown_choice() -> ApiError:
    return ApiError(
        400,
        "tool_choice must name tools that are declared in tools.",
        code="invalid_value",
        param="tool_choice",
    )


def _in_our_words(error: ApiError, tools: Sequence[Tool]) -> ApiError:
    if error.param is None:
        return error
    theirs = error.param
    found = _TOOL_PARAM.match(theirs)
    if found and int(found[1]) < len(tools):
        ours = tools[int(found[1])].param + theirs[found.end() :]
    else:
        ours = _PARAMS.get(theirs, theirs)
    message = error.message.replace(theirs, ours) if re.search(r"\W|_", theirs) else error.message
    return ApiError(
        error.status, message, kind=error.kind, code=error.code, param=ours, headers=error.headers
    )
