"""Server-sent events of a streamed chat completion."""

from __future__ import annotations

from typing import Any

import orjson

from rhizome_gateway.errors import ApiError
from rhizome_gateway.generation.events import (
    Begun,
    CallArguments,
    CallBegun,
    Ended,
    Event,
    Reasoning,
    Text,
)
from rhizome_gateway.generation.summary import Summary
from rhizome_gateway.openai.objects import logprobs_object, usage_object
from rhizome_gateway.openai.sse import DONE, KEEP_ALIVE, error_event
from rhizome_gateway.tokenization.spelling import TokenBytes

_ROLE = b'{"role":"assistant","content":"","refusal":null}'


class ChatStream:
    """Writes the chunks of one stream; what never changes is encoded once. See `generation.writer`.

    A choice says its role with its first token and not before: benchmarks and routers take the first chunk
    for the first token.

    Args:
        head: the fields that all chunks begin with, as one JSON object.
        summary: of the response.
        num_choices: how many choices there are.
        tokenizer: spells tokens for log probabilities.
        called_reason: `finish_reason` after tool calls.
        include_usage: chunks hold `"usage": null`, and a last one holds the usage.
    """

    keep_alive = KEEP_ALIVE

    __slots__ = (
        "_called_reason",
        "_choice_ends",
        "_choice_heads",
        "_head",
        "_num_choices",
        "_summary",
        "_tokenizer",
        "_unsaid",
        "_usage",
    )

    def __init__(
        self,
        head: bytes,
        summary: Summary,
        *,
        num_choices: int,
        tokenizer: TokenBytes,
        include_usage: bool,
        called_reason: str = "tool_calls",
    ) -> None:
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._usage = b',"usage":null' if include_usage else b""
        self._summary = summary
        self._num_choices = num_choices
        self._called_reason = called_reason
        self._tokenizer = tokenizer
        self._unsaid: set[int] = set()
        self._choice_heads = [self._head + b'{"index":%d,"delta":' % i for i in range(num_choices)]
        self._choice_ends = b"}]" + self._usage + b"}\n\n"

    def event(self, index: int, event: Event) -> bytes:
        """The chunks for one event."""
        if self._unsaid and index in self._unsaid:
            self._unsaid.discard(index)
            return self._raw_chunk(index, _ROLE) + self.event(index, event)
        if type(event) is Text:
            if not event.logprobs:
                return b"".join(
                    (
                        self._choice_heads[index],
                        b'{"content":',
                        orjson.dumps(event.text),
                        b'},"logprobs":null,"finish_reason":null',
                        self._choice_ends,
                    )
                )
            return self._chunk(
                index, {"content": event.text}, logprobs_object(event.logprobs, self._tokenizer)
            )
        match event:
            case Begun():
                self._unsaid.add(index)
                return b""
            case Reasoning():
                logprobs = logprobs_object(event.logprobs, self._tokenizer) if event.logprobs else None
                # Clients look for one name or the other.
                delta = {"reasoning_content": event.text, "reasoning": event.text}
                return self._chunk(index, delta, logprobs)
            case CallBegun():
                function = {"name": event.name, "arguments": ""}
                call = {"index": event.call, "id": event.id, "type": "function", "function": function}
                return self._chunk(index, {"tool_calls": [call]})
            case CallArguments():
                more = {"index": event.call, "function": {"arguments": event.text}}
                return self._chunk(index, {"tool_calls": [more]})
            case Ended():
                return self._finish(index, event)
            case _:
                return b""

    def end(self) -> bytes:
        """The usage, where the client asked for it, and the end mark."""
        if not self._usage:
            return DONE
        return self._head + b'],"usage":' + orjson.dumps(usage_object(self._summary)) + b"}\n\n" + DONE

    def broken_off(self, error: ApiError) -> bytes:
        """The error as an event, then the end mark."""
        return error_event(error) + DONE

    def _finish(self, index: int, ended: Ended) -> bytes:
        """The last chunk of a choice; that of the last choice says where the time went."""
        extra = b""
        if len(self._summary.ended) == self._num_choices:
            extra = b',"performance":' + orjson.dumps(self._summary.performance)
        reason = self._called_reason if ended.reason == "tool_calls" else ended.reason
        return self._raw_chunk(index, b"{}", finish_reason=orjson.dumps(reason), extra=extra)

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> bytes:
        return self._raw_chunk(index, orjson.dumps(delta), orjson.dumps(logprobs))

    def _raw_chunk(
        self,
        index: int,
        delta: bytes,
        logprobs: bytes = b"null",
        *,
        finish_reason: bytes = b"null",
        extra: bytes = b"",
    ) -> bytes:
        return b"".join(
            (
                self._choice_heads[index],
                delta,
                b',"logprobs":',
                logprobs,
                b',"finish_reason":',
                finish_reason,
                b"}]",
                self._usage,
                extra,
                b"}\n\n",
            )
        )
