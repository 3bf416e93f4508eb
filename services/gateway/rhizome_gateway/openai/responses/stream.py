"""Server-sent events of a streamed response.

    response.created, response.in_progress,
    (output_item.added, what the item says, output_item.done)…,
    response.completed or response.incomplete; response.failed where an error breaks it off

One item is open at a time; it closes when something of another kind comes. The last event holds the whole
response, and so a response that is not streamed is the last event of a stream that nobody saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rhizome_gateway.errors import ApiError
from rhizome_gateway.generation.events import (
    Begun,
    CallArguments,
    CallBegun,
    Ended,
    Event,
    Reasoning,
    Text,
    TokenLogprobs,
)
from rhizome_gateway.generation.summary import Summary
from rhizome_gateway.openai.responses.objects import error_object, logprobs_list
from rhizome_gateway.openai.responses.output_items import (
    CustomCallItem,
    FunctionCallItem,
    MessageItem,
    OutputItem,
    ReasoningItem,
)
from rhizome_gateway.openai.responses.response_object import ResponseObject
from rhizome_gateway.openai.responses.sse import NumberedEvents
from rhizome_gateway.openai.responses.tools import Tool
from rhizome_gateway.openai.sse import KEEP_ALIVE
from rhizome_text.tokenizer import Tokenizer

_COMPLETED = "completed"
_INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How the output of a response is shown.

    Attributes:
        tokenizer: for log probabilities.
        tools: those that may be called, by the name that the model knows.
        carry_reasoning: give thinking as `encrypted_content` too.
    """

    tokenizer: Tokenizer
    tools: Mapping[str, Tool]
    carry_reasoning: bool


class ResponseStream:
    """Writes the events of one stream. See `generation.writer`.

    Args:
        response: what does not change while it grows.
        options: how its output is shown.
        summary: what it cost, once it has ended.
    """

    keep_alive = KEEP_ALIVE

    def __init__(self, response: ResponseObject, options: OutputOptions, summary: Summary) -> None:
        self._response = response
        self._options = options
        self._summary = summary
        self._events = NumberedEvents()
        self._output: list[dict[str, Any]] = []
        self._open: OutputItem | None = None
        self._unplaced: list[tuple[int, Any]] = []
        """Log probabilities of tokens that came before the text they belong to."""
        self._begun = False
        self._status = _COMPLETED

    def event(self, index: int, event: Event) -> bytes:
        """The events for one event of the generation."""
        match event:
            case Text():
                return self._add_text(event.text, event.logprobs)
            case Reasoning():
                if not event.text:
                    return b""
                if isinstance(self._open, ReasoningItem):
                    return self._open.more(event.text)
                carry = self._options.carry_reasoning
                return self._begin(ReasoningItem(self._events, self._place(), carry=carry), event.text)
            case CallBegun():
                self._unplaced.clear()  # of the tokens that spell the call
                tool = self._options.tools[event.name]
                make = CustomCallItem if tool.custom else FunctionCallItem
                return self._begin(make(self._events, self._place(), event, tool), "")
            case CallArguments():
                call = self._open
                assert isinstance(call, FunctionCallItem | CustomCallItem), "arguments follow their call"
                return call.more(event.text) if event.text else b""
            case Begun():
                return self._created()
            case Ended():
                self._status = _INCOMPLETE if event.reason == "length" else _COMPLETED
                return self._close()
            case _:
                return b""

    def end(self) -> bytes:
        """The last event."""
        return self._events.write(f"response.{self._status}", response=self.response())

    def response(self) -> dict[str, Any]:
        """The whole response, once it has ended."""
        return self._response.ended(self._status, self._output, self._summary)

    def broken_off(self, error: ApiError) -> bytes:
        """The response as far as it came, with the error. One that the engine never began begins here."""
        begun = b"" if self._begun else self._created()
        output = self._output if self._open is None else [*self._output, self._open.object(_INCOMPLETE)]
        failed = self._response.failed(output, error_object(error))
        return begun + self._events.write("response.failed", response=failed)

    def _created(self) -> bytes:
        self._begun = True
        response = self._response.begun()
        return b"".join(
            self._events.write(f"response.{name}", response=response) for name in ("created", "in_progress")
        )

    def _add_text(self, text: str, logprobs: TokenLogprobs) -> bytes:
        if isinstance(self._open, MessageItem):
            return self._more_text(self._open, text, logprobs)
        self._unplaced += logprobs
        if not text:
            return b""
        message = MessageItem(self._events, self._place())
        scored, self._unplaced = self._unplaced, []
        return self._begin(message, "") + self._more_text(message, text, scored)

    def _more_text(self, message: MessageItem, text: str, logprobs: TokenLogprobs) -> bytes:
        if logprobs:
            return message.more_scored(text, logprobs_list(logprobs, self._options.tokenizer))
        return message.more(text) if text else b""

    def _place(self) -> int:
        """Where the next item stands."""
        return len(self._output) + (self._open is not None)

    def _begin(self, item: OutputItem, text: str) -> bytes:
        closed = self._close(_COMPLETED)
        self._open = item
        return closed + item.begin() + (item.more(text) if text else b"")

    def _close(self, status: str | None = None) -> bytes:
        """Close the open item; without a status in that of the response."""
        item, self._open = self._open, None
        if item is None:
            return b""
        status = status or self._status
        closed = item.end(status)
        self._output.append(item.object(status))
        return closed
