"""Objects of the OpenAI API that answer a chat completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.duration_pb2 import Duration

from rhizome.common.v1.common_pb2 import Timings
from rhizome.engine.v1.generate_pb2 import TokenLogprob
from rhizome_gateway.generation.choice import Ended
from rhizome_gateway.generation.tool_calls import ParsedCall
from rhizome_text.tokenizer import Tokenizer

_LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""


@dataclass
class Summary:
    """What all choices of a completion cost, added up as they end."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: dict[int, str] = field(default_factory=dict)
    _timings: list[Timings] = field(default_factory=list)

    def add(self, ended: Ended, finish_reason: str) -> None:
        """Count one choice; they share the prompt, and the first to end says how much of it was cached."""
        if not self._timings:
            self.prompt_tokens, self.cached_tokens = ended.prompt_tokens, ended.cached_tokens
        self.completion_tokens += ended.completion_tokens
        self.finish_reasons[ended.index] = finish_reason
        self._timings.append(ended.timings)

    @property
    def usage(self) -> dict[str, Any]:
        """The `usage` object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    @property
    def performance(self) -> dict[str, float]:
        """Where the time went, in milliseconds, as the engine measured it; several choices: the slowest.

        `tokens_per_second` counts the tokens after the first over the time they took; with only one token,
        that token over the time until it came.
        """
        slowest = max(self._timings, key=lambda timings: _ms(timings.decode_time))
        decode_ms = _ms(slowest.decode_time)
        first_ms = max(_ms(timings.time_to_first_token) for timings in self._timings)
        later = self.completion_tokens - len(self._timings)
        if later > 0 and decode_ms > 0:
            rate = later / decode_ms * 1000
        else:
            rate = self.completion_tokens / first_ms * 1000 if first_ms > 0 else 0.0
        return {
            "queue_time_ms": max(_ms(timings.queue_time) for timings in self._timings),
            "prefill_time_ms": max(_ms(timings.prefill_time) for timings in self._timings),
            "decode_time_ms": decode_ms,
            "time_to_first_token_ms": first_ms,
            "tokens_per_second": round(rate, 3),
        }


def message_object(content: str, calls: Sequence[ParsedCall]) -> dict[str, Any]:
    """The assistant's message; content is null where there are only tool calls."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": content if content or not calls else None,
        "refusal": None,
    }
    if calls:
        message["tool_calls"] = [tool_call_object(call) for call in calls]
    return message


def tool_call_object(call: ParsedCall) -> dict[str, Any]:
    """One tool call."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def logprobs_object(tokens: Sequence[tuple[int, TokenLogprob]], tokenizer: Tokenizer) -> dict[str, Any]:
    """The `logprobs` of a choice or chunk.

    A token may be part of a character: `bytes` is exact then, `token` is not.
    """

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token_id)
        return {
            "token": raw.decode("utf-8", "replace"),
            "logprob": max(logprob, _LEAST_LOGPROB),
            "bytes": list(raw),
        }

    content = [
        entry(token_id, logprob.logprob)
        | {"top_logprobs": [entry(rival.token_id, rival.logprob) for rival in logprob.top]}
        for token_id, logprob in tokens
    ]
    return {"content": content, "refusal": None}


def _ms(duration: Duration) -> float:
    return round(duration.seconds * 1e3 + duration.nanos / 1e6, 3)
