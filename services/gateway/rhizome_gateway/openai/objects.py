"""Objects that several responses of the OpenAI API hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rhizome.engine.v1.generate_pb2 import TokenLogprob
from rhizome_gateway.generation.summary import CollectedCall, Summary
from rhizome_gateway.tokenization.spelling import TokenBytes

_LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""


def usage_object(summary: Summary) -> dict[str, Any]:
    """`usage`."""
    return {
        "prompt_tokens": summary.prompt_tokens,
        "completion_tokens": summary.completion_tokens,
        "total_tokens": summary.prompt_tokens + summary.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": summary.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": summary.reasoning_tokens},
    }


def tool_call_object(call: CollectedCall) -> dict[str, Any]:
    """One tool call of a message."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def finite_logprob(logprob: float) -> float:
    """A log probability that JSON can hold."""
    return max(logprob, _LEAST_LOGPROB)


def logprobs_object(tokens: Sequence[tuple[int, TokenLogprob]], tokenizer: TokenBytes) -> dict[str, Any]:
    """The `logprobs` of a chat choice or chunk.

    A token may be part of a character: `bytes` is exact then, `token` is not.
    """

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token_id)
        return {
            "token": raw.decode("utf-8", "replace"),
            "logprob": finite_logprob(logprob),
            "bytes": list(raw),
        }

    content = [
        entry(token_id, logprob.logprob)
        | {"top_logprobs": [entry(rival.token_id, rival.logprob) for rival in logprob.top]}
        for token_id, logprob in tokens
    ]
    return {"content": content, "refusal": None}
