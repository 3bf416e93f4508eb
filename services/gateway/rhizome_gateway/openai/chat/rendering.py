"""A chat completion as OpenAI's API shows it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import orjson

from rhizome_gateway.generation.summary import Answer, Summary
from rhizome_gateway.openai.chat.request import ChatCompletionRequest
from rhizome_gateway.openai.chat.stream import ChatStream
from rhizome_gateway.openai.objects import logprobs_object, tool_call_object, usage_object
from rhizome_gateway.served_model import ServedModel
from rhizome_gateway.tokenization.spelling import NumberedTokens, TokenBytes


class ChatRendering:
    """Shows one chat completion; see `generation.writer.Rendering`."""

    def __init__(self, completion_id: str, request: ChatCompletionRequest, served: ServedModel) -> None:
        self._id = completion_id
        self._request = request
        self._served = served
        self._created = int(time.time())
        self._spells: TokenBytes = (
            NumberedTokens() if request.return_tokens_as_token_ids else served.tokenizer
        )

    def stream(self, summary: Summary) -> ChatStream:
        """Begin a stream."""
        request = self._request
        return ChatStream(
            orjson.dumps(self._head("chat.completion.chunk")),
            summary,
            num_choices=request.num_choices,
            tokenizer=self._spells,
            include_usage=request.include_usage,
            called_reason=finish_reason(request, "tool_calls"),
        )

    def whole(self, answers: Sequence[Answer], summary: Summary) -> bytes:
        """The whole completion."""
        return orjson.dumps(
            {
                **self._head("chat.completion"),
                "choices": [self._choice(index, answer) for index, answer in enumerate(answers)],
                "usage": usage_object(summary),
                "performance": summary.performance,
            }
        )

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._request.model,
            "system_fingerprint": self._served.fingerprint,
        }

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        request = self._request
        logprobs = answer.text_logprobs if request.hides_reasoning else answer.logprobs
        return {
            "index": index,
            "message": _message(answer),
            "logprobs": logprobs_object(logprobs, self._spells) if request.logprobs else None,
            "finish_reason": finish_reason(self._request, answer.finish_reason),
        }


def finish_reason(request: ChatCompletionRequest, reason: str) -> str:
    """As OpenAI says it: a call that had to be this one is where the answer simply stops."""
    return "stop" if reason == "tool_calls" and request.named_tool is not None else reason


def _message(answer: Answer) -> dict[str, Any]:
    """The assistant's message; content is null where there are only tool calls."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.text if answer.text or not answer.calls else None,
        "refusal": None,
    }
    if answer.reasoning:  # clients look for one name or the other
        message["reasoning_content"] = message["reasoning"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [tool_call_object(call) for call in answer.calls]
    return message
