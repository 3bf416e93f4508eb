"""Objects that whole and streamed responses hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rhizome_gateway.errors import ApiError, clip
from rhizome_gateway.generation.events import TokenLogprobs
from rhizome_gateway.generation.summary import Summary
from rhizome_gateway.openai.objects import logprobs_object
from rhizome_telemetry.random_ids import random_hex
from rhizome_text.tokenizer import Tokenizer


def new_id(prefix: str) -> str:
    """The id of a response or of an item."""
    return f"{prefix}_{random_hex()}"


def usage_object(summary: Summary) -> dict[str, Any]:
    """`usage`. What is written to the cache costs nothing here and is not counted apart."""
    return {
        "input_tokens": summary.prompt_tokens,
        "input_tokens_details": {"cached_tokens": summary.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": summary.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": summary.reasoning_tokens},
        "total_tokens": summary.prompt_tokens + summary.completion_tokens,
    }


def error_object(error: ApiError) -> dict[str, Any]:
    """`error` of a response that failed after it was begun; OpenAI has few codes for that."""
    code = "rate_limit_exceeded" if error.status == 429 else "server_error"
    return {"code": code, "message": clip(error.message)}


def logprobs_list(tokens: TokenLogprobs, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The `logprobs` of a text."""
    entries: Sequence[dict[str, Any]] = logprobs_object(tokens, tokenizer)["content"] if tokens else ()
    return list(entries)
