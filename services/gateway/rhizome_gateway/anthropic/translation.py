"""A request in Anthropic's form becomes one in OpenAI's chat form, which is what the gateway plans."""

from __future__ import annotations

from typing import Any

from rhizome_gateway.anthropic.conversation import chat_messages
from rhizome_gateway.anthropic.request import (
    ClientTool,
    CountTokensRequest,
    MessagesRequest,
    OutputConfig,
    ThinkingConfig,
    ToolUsePolicy,
)
from rhizome_gateway.openai.chat.request import ChatCompletionRequest
from rhizome_gateway.schema.validation import validate

_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_request(
    request: CountTokensRequest,
) -> tuple[ChatCompletionRequest, list[dict[str, Any]] | None]:
    """Translate.

    `max_tokens` is not part of the result: here it is a limit that may lie beyond the context, see `route`.

    Returns:
        The request, and the tools as `plan_chat` wants them.

    Raises:
        ApiError: 400; the conversation or something it asks for cannot be served.
    """
    messages = chat_messages(request.system or (), request.messages)
    tools = [_tool(tool) for tool in request.tools or ()] or None
    fields: dict[str, Any] = {
        "model": request.model,
        "messages": messages,
        "tools": tools,
        **_thinking(request.thinking, request.output_config),
    }
    if tools and request.tool_choice is not None:
        fields |= _tool_choice(request.tool_choice)
    if messages and messages[-1]["role"] == "assistant":
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    if isinstance(request, MessagesRequest):
        fields |= _generation(request)
    return validate(ChatCompletionRequest, fields), tools


def _generation(request: MessagesRequest) -> dict[str, Any]:
    """What matters to the answer, and to where it is made."""
    fields: dict[str, Any] = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "stop": request.stop_sequences or None,
        "stream": request.stream,
        "user": request.metadata.user_id if request.metadata is not None else None,
    }
    config = request.output_config
    answer = (config and config.format) or request.output_format
    if answer is not None:
        named = {"name": "answer", "schema": answer.json_schema, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": named}
    return fields


def _tool(tool: ClientTool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}  # in the order that models have seen
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.input_schema
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolUsePolicy) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "tool_choice": {"type": "function", "function": {"name": choice.name}}
        if choice.type == "tool"
        else _TOOL_CHOICES[choice.type]
    }
    if choice.disable_parallel_tool_use:
        fields["parallel_tool_calls"] = False
    return fields


def _thinking(thinking: ThinkingConfig | None, output: OutputConfig | None) -> dict[str, Any]:
    """Templates know the switch under one name or the other."""
    fields: dict[str, Any] = {"reasoning_effort": None if output is None else output.effort}
    if thinking is not None:
        wanted = thinking.type != "disabled"
        fields["chat_template_kwargs"] = {
            "enable_thinking": wanted,
            "thinking": wanted,
            "thinking_budget": thinking.budget_tokens if wanted else None,
        }
        if not wanted:
            fields["reasoning_effort"] = "none"
    return fields
