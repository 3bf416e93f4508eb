"""Objects that whole and streamed messages hold."""

from __future__ import annotations

from typing import Any

from rhizome_gateway.generation.events import Begun, Ended

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def message_object(
    message_id: str, model: str, *, content: list[Any], usage: dict[str, Any]
) -> dict[str, Any]:
    """A message that has not ended."""
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def usage_object(cost: Begun | Ended) -> dict[str, Any]:
    """`usage`.

    As Anthropic defines it, `input_tokens` lacks what was read from the cache: all three kinds of input
    together are the prompt. What is written to the cache costs nothing here and is not counted apart.
    """
    usage: dict[str, Any] = {
        "input_tokens": cost.prompt_tokens - cost.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cost.cached_tokens,
        "output_tokens": 0,
    }
    if isinstance(cost, Ended):
        usage["output_tokens"] = cost.completion_tokens
        usage["output_tokens_details"] = {"thinking_tokens": cost.reasoning_tokens}
    return usage


def stop_object(ended: Ended, *, fills_context: bool) -> dict[str, Any]:
    """Why a message ended.

    Args:
        ended: how.
        fills_context: the context, not `max_tokens`, is what limits the answer.
    """
    reason = _STOP_REASONS[ended.reason]
    if ended.reason == "length" and fills_context:
        reason = "model_context_window_exceeded"
    if ended.reason == "stop" and ended.stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": ended.stop}
    return {"stop_reason": reason, "stop_sequence": None}


def tool_use_id(call_id: str) -> str:
    """The id of a call with Anthropic's prefix."""
    return f"toolu_{call_id.removeprefix('call_')}"
