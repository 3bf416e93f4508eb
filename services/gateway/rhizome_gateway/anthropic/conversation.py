"""A conversation in Anthropic's form becomes one in OpenAI's: turns of blocks become messages.

    assistant  thinking, text, tool_use…   ->  assistant: reasoning_content, content, tool_calls
    user       tool_result…, text          ->  tool, one for each result; then user

Neighbours of the same role are one turn. Results stand in the order of the calls, and before the text of
their turn, because that is how models have learned to read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from rhizome_gateway.anthropic.billing_header import without_billing_header
from rhizome_gateway.anthropic.blocks import (
    Block,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from rhizome_gateway.anthropic.request import Turn
from rhizome_gateway.errors import ApiError

_PARAGRAPH = "\n\n"
_REMINDER = "<system-reminder>\n{}\n</system-reminder>"


def chat_messages(system: Sequence[TextBlock], turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Write the messages of a chat request.

    System messages that come before anybody spoke belong to the system prompt. Templates of many models take
    none later on, so a later one becomes a reminder in the user's turn: what came before it stays as it was,
    and cached.

    Raises:
        ApiError: 400; tool calls and their results do not belong together.
    """
    opening = next((index for index, turn in enumerate(turns) if turn.role != "system"), len(turns))
    instructions = [*system, *(block for turn in turns[:opening] for block in turn.content)]
    prompt = _text(
        without_billing_header(block.text) for block in instructions if isinstance(block, TextBlock)
    )
    messages: list[dict[str, Any]] = [{"role": "system", "content": prompt}] if prompt else []
    calls: list[str] = []
    for answered, group in groupby(turns[opening:], lambda turn: turn.role == "assistant"):
        blocks = [block for turn in group for block in _blocks(turn)]
        if answered:
            messages += _assistant(blocks)
            calls = [block.id for block in blocks if isinstance(block, ToolUseBlock)]
            if len(calls) != len(set(calls)):
                raise _mismatch("tool_use blocks must have different ids.")
        else:
            messages += _user(blocks, calls)
            calls = []
    if calls:
        raise _mismatch("Each tool_use must be followed by a message with its tool_result.")
    return messages


def _blocks(turn: Turn) -> Sequence[Block]:
    if turn.role != "system":
        return turn.content
    text = _text(block.text for block in turn.content if isinstance(block, TextBlock))
    return [TextBlock(type="text", text=_REMINDER.format(text))]


def _assistant(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """Its pieces of text follow one another as the model wrote them, so nothing comes between them."""
    text = "".join(block.text for block in blocks if isinstance(block, TextBlock))
    thinking = "".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
    calls = [
        {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["reasoning_content"] = thinking
    if calls:
        message["tool_calls"] = calls
    return [message] if text or thinking or calls else []


def _user(blocks: Sequence[Block], calls: Sequence[str]) -> list[dict[str, Any]]:
    results = {block.tool_use_id: block for block in blocks if isinstance(block, ToolResultBlock)}
    if len(results) < sum(isinstance(block, ToolResultBlock) for block in blocks):
        raise _mismatch("Each tool_use must have one tool_result, not several.")
    if not results.keys() <= set(calls):
        raise _mismatch("Each tool_result must have the id of a tool_use in the assistant's message before.")
    if len(results) < len(calls):
        raise _mismatch("Each tool_use must be followed by a message with its tool_result.")
    messages = [
        {"role": "tool", "tool_call_id": call, "content": _result_text(results[call])} for call in calls
    ]
    texts = [block.text for block in blocks if isinstance(block, TextBlock)]
    if texts:
        messages.append({"role": "user", "content": _text(texts)})
    return messages


def _result_text(result: ToolResultBlock) -> str:
    text = _text(block.text for block in result.content or ())
    return f"Error: {text}" if result.is_error else text


def _text(texts: Iterable[str]) -> str:
    """Several blocks of somebody else than the model are several paragraphs."""
    return _PARAGRAPH.join(text for text in texts if text)


def _mismatch(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_value", param="messages")
