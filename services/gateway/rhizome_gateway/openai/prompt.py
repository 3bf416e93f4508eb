"""Messages to token ids: the model's chat template, then its tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson

from rhizome_gateway.engine_session import ServedModel
from rhizome_gateway.errors import ApiError
from rhizome_gateway.openai.schema import ChatCompletionRequest, Message
from rhizome_text.chat_template import ChatTemplate, ChatTemplateError

_INLINE_CHARS = 2048
"""Shorter conversations take less time than a hop to another thread."""


async def prompt_token_ids(
    served: ServedModel, request: ChatCompletionRequest, tools: Sequence[dict[str, Any]] | None
) -> list[int]:
    """Render and tokenise, off the event loop where it takes long.

    Args:
        served: whose template and tokenizer.
        request: the conversation.
        tools: as the client declared them, None to hide them.

    Raises:
        ApiError: 400; the template refuses the conversation, or it does not fit into the context.
    """
    size = sum(map(_size, request.messages))
    if size <= _INLINE_CHARS and not tools:
        return _token_ids(served, request, tools)
    return await asyncio.to_thread(_token_ids, served, request, tools)


def _size(message: Message) -> int:
    """Characters that a message adds to the prompt, roughly."""
    calls = sum(len(str(call.function.arguments)) for call in message.tool_calls or ())
    return len(message.role) + len(message.content or "") + len(message.name or "") + calls


def _token_ids(
    served: ServedModel, request: ChatCompletionRequest, tools: Sequence[dict[str, Any]] | None
) -> list[int]:
    try:
        template = served.tokenizer.chat_template(tools=tools is not None)
        if template is None:
            raise ApiError(
                400,
                "This model has no chat template, so it cannot hold conversations.",
                code="unsupported_parameter",
                param="messages",
            )
        prompt = template.render(
            template_messages(request.messages, template),
            tools=None if tools is None else template_tools(tools),
            add_generation_prompt=request.add_generation_prompt is not False,
            **(request.chat_template_kwargs or {}),
        )
    except ChatTemplateError as error:
        raise ApiError(400, f"{error}.", code="invalid_value", param="messages") from error
    limit = served.info.max_context_tokens
    # No token stands for more characters than the longest one: a prompt that is too long even so need not
    # be tokenised to be refused.
    least = len(prompt) // max(1, served.tokenizer.longest_token_chars)
    if least > limit:
        raise _too_long(limit, f"at least {least}", None)
    token_ids = served.tokenizer.encode(prompt)
    check_context(served, len(token_ids), request.token_limit)
    return token_ids


def check_context(served: ServedModel, prompt_tokens: int, max_tokens: int | None) -> None:
    """Refuse what cannot fit.

    Raises:
        ApiError: 400 `context_length_exceeded`; nothing is ever cut silently.
    """
    limit = served.info.max_context_tokens
    if prompt_tokens + (max_tokens or 1) > limit:
        raise _too_long(limit, str(prompt_tokens), max_tokens)


def template_messages(messages: Sequence[Message], template: ChatTemplate) -> list[dict[str, Any]]:
    """Messages as templates know them: content is text, arguments are objects, absent keys stay absent."""
    knows_developer = "developer" in template.source
    rendered = []
    for index, message in enumerate(messages):
        role = message.role
        if role == "developer" and not knows_developer:
            role = "system"
        entry: dict[str, Any] = {"role": role, "content": message.content or message.refusal or ""}
        if message.name is not None:
            entry["name"] = message.name
        if message.tool_call_id is not None:
            entry["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            entry["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": _arguments(call.function.arguments, index, position),
                    },
                }
                for position, call in enumerate(message.tool_calls)
            ]
        rendered.append(entry)
    return rendered


def template_tools(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tools as the client declared them, less what it set to null; schemas may hold nulls of their own."""
    return [
        tool | {"function": {name: value for name, value in tool["function"].items() if value is not None}}
        for tool in tools
    ]


def _arguments(arguments: str | dict[str, Any] | None, message: int, call: int) -> dict[str, Any]:
    if isinstance(arguments, dict):
        return arguments
    try:
        value = orjson.loads(arguments or "{}")
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        param = f"messages[{message}].tool_calls[{call}].function.arguments"
        raise ApiError(400, f"'{param}' must be a JSON object.", code="invalid_value", param=param)
    return value


def _too_long(limit: int, prompt_tokens: str, max_tokens: int | None) -> ApiError:
    asked = "" if max_tokens is None else f" and {max_tokens} were asked for the answer"
    return ApiError(
        400,
        f"This model's context holds {limit} tokens, but the messages have {prompt_tokens}{asked}. "
        "Shorten the messages or ask for a shorter answer.",
        code="context_length_exceeded",
        param="messages",
    )
