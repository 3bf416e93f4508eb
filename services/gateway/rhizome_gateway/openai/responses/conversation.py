"""The items of an input become the messages of a chat.

    instructions, then system and developer messages      ->  system
    user                                                  ->  user
    reasoning, assistant, function_call…, their outputs   ->  assistant, tool…

Templates of many models take one system message, at the beginning, and no two users in a row. So neighbours
of the same role are one message, and what a developer says later becomes part of the user's turn: what came
before it stays as it was, and cached. Outputs stand in the order of their calls, right after them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from rhizome_gateway.errors import ApiError
from rhizome_gateway.openai.responses.carried_reasoning import reasoning_of
from rhizome_gateway.openai.responses.items import InputItem
from rhizome_gateway.openai.responses.tools import function_name
from rhizome_gateway.prompt.written_arguments import begins_as_object

_PARAGRAPH = "\n\n"
_DEVELOPER = "<developer>\n{}\n</developer>"
_CALLS = ("function_call", "custom_tool_call")
_OUTPUTS = ("function_call_output", "custom_tool_call_output")


def chat_messages(instructions: str | None, items: Sequence[InputItem]) -> list[dict[str, Any]]:
    """Write the messages of a chat request.

    Raises:
        ApiError: 400; calls and outputs do not belong together, or a call's arguments are no object.
    """
    outputs = _outputs(items)
    spoken = (i for i, item in enumerate(items) if item.role not in ("system", "developer"))
    opening = next(spoken, len(items))
    system = _text([instructions or "", *(item.content or "" for item in items[:opening])])
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    turns = groupby(enumerate(items[opening:], opening), lambda numbered: _speaker(numbered[1]))
    for speaker, group in turns:
        if speaker == "user":
            said = _text(_said(item) for _, item in group)
            if messages and messages[-1]["role"] == "user":  # only outputs came between
                messages[-1]["content"] = _text([messages[-1]["content"], said])
            else:
                messages.append({"role": "user", "content": said})
        elif speaker == "assistant":
            messages += _assistant(list(group), outputs)
    return messages


def _speaker(item: InputItem) -> str:
    if item.type in _OUTPUTS:
        return "tool"
    if item.type == "message" and item.role != "assistant":
        return "user"
    return "assistant"


def _said(item: InputItem) -> str:
    content = item.content or ""
    return content if item.role == "user" else _DEVELOPER.format(content)


def _assistant(
    numbered: Sequence[tuple[int, InputItem]], outputs: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """One answer of the model, and the outputs of its calls."""
    items = [item for _, item in numbered]
    thinking = _text(_reasoning(item, index) for index, item in numbered if item.type == "reasoning")
    calls = [_call(item, index) for index, item in numbered if item.type in _CALLS]
    content = _text(item.content or "" for item in items if item.type == "message")
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if thinking:
        message["reasoning_content"] = thinking
    if calls:
        message["tool_calls"] = calls
    if thinking or calls or any(item.type == "message" for item in items):
        yield message
    for call in calls:
        yield {"role": "tool", "tool_call_id": call["id"], "content": outputs[call["id"]]}


def _call(item: InputItem, index: int) -> dict[str, Any]:
    is_custom = item.type == "custom_tool_call"
    arguments: Any = {"input": item.input} if is_custom else _arguments(item, index)
    function = {"name": function_name(item.name or "", item.namespace), "arguments": arguments}
    return {"id": item.call_id, "type": "function", "function": function}


def _arguments(item: InputItem, index: int) -> str:
    """The arguments as they were written; those that were cut off or broken are read with the prompt."""
    value = item.arguments or "{}"
    if not begins_as_object(value):
        param = f"input[{index}].arguments"
        raise ApiError(400, f"'{param}' must be a JSON object.", code="invalid_value", param=param)
    return value


def _reasoning(item: InputItem, index: int) -> str:
    if item.content or item.encrypted_content is None:
        return item.content or ""
    try:
        return reasoning_of(item.encrypted_content) or ""
    except ValueError:
        param = f"input[{index}].encrypted_content"
        raise ApiError(
            400,
            f"'{param}' is not what this server gave out; send it back unchanged, or leave it out.",
            code="invalid_value",
            param=param,
        ) from None


def _outputs(items: Sequence[InputItem]) -> dict[str, str]:
    """The outputs by the ids of their calls: each call has one, and each output its call."""
    calls: set[str] = set()
    outputs: dict[str, str] = {}
    for index, item in enumerate(items):
        call_id = item.call_id or ""
        param = f"input[{index}].call_id"
        if item.type in _CALLS:
            if call_id in calls:
                raise _mismatch("Calls must have different values of call_id.", param)
            calls.add(call_id)
        elif item.type in _OUTPUTS:
            if call_id in outputs:
                raise _mismatch("A call must have one output, not several.", param)
            if call_id not in calls:
                raise _mismatch("An output must have the call_id of a call before it.", param)
            outputs[call_id] = item.output or ""
    for index, item in enumerate(items):
        if item.type in _CALLS and item.call_id not in outputs:
            raise _mismatch("A call must be followed by its output.", f"input[{index}].call_id")
    return outputs


def _text(texts: Iterable[str]) -> str:
    return _PARAGRAPH.join(text for text in texts if text)


def _mismatch(message: str, param: str) -> ApiError:
    return ApiError(400, message, code="invalid_value", param=param)
