"""Server-sent events of a streamed message.

    message_start, ping, (content_block_start, content_block_delta…, content_block_stop)…,
    message_delta, message_stop

One block is open at a time; it closes when something of another kind comes.
"""

from __future__ import annotations

from typing import Any

import orjson

from rhizome_gateway.anthropic.errors import error_object
from rhizome_gateway.anthropic.objects import message_object, stop_object, tool_use_id, usage_object
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

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


class MessageStream:
    """Writes the events of one stream. See `generation.writer`.

    Args:
        message_id: names the message.
        model: as the client asked for it.
        request_id: names the request, in errors.
        fills_context: the context, not `max_tokens`, is what limits the answer.
        show_thinking: False keeps the text of thinking back; its blocks remain.
    """

    keep_alive = PING

    __slots__ = (
        "_block",
        "_delta",
        "_fills_context",
        "_index",
        "_message_id",
        "_model",
        "_request_id",
        "_show_thinking",
    )

    def __init__(
        self, message_id: str, model: str, *, request_id: str, fills_context: bool, show_thinking: bool
    ) -> None:
        self._message_id = message_id
        self._model = model
        self._request_id = request_id
        self._fills_context = fills_context
        self._show_thinking = show_thinking
        self._index = -1
        self._block: str | int | None = None
        """What the open block is: `text`, `thinking`, or the number of a call."""
        self._delta = b""
        """What the deltas of the open block begin with, up to their text."""

    def event(self, index: int, event: Event) -> bytes:
        """The events for one event of the generation."""
        match event:
            case Text():
                if not event.text:
                    return b""
                opening = b"" if self._block == "text" else self._open_text()
                return opening + self._continued(event.text)
            case Reasoning():
                if not event.text:
                    return b""
                opening = b"" if self._block == "thinking" else self._open_thinking()
                return opening + (self._continued(event.text) if self._show_thinking else b"")
            case CallBegun():
                return self._open_call(event)
            case CallArguments():
                assert self._block == event.call, "arguments follow the beginning of their own call"
                return self._continued(event.text) if event.text else b""
            case Begun():
                message = message_object(self._message_id, self._model, content=[], usage=usage_object(event))
                return _event("message_start", message=message) + PING
            case Ended():
                stop = stop_object(event, fills_context=self._fills_context)
                return self._close() + _event("message_delta", delta=stop, usage=usage_object(event))
            case _:
                return b""

    def end(self) -> bytes:
        """The last event."""
        return _STOP

    def broken_off(self, error: ApiError) -> bytes:
        """The error as an event; blocks and message stay open, because they are not complete."""
        return b"event: error\ndata: " + orjson.dumps(error_object(error, self._request_id)) + b"\n\n"

    def _open_text(self) -> bytes:
        return self._open("text", {"type": "text", "text": ""}, b'"text_delta","text":')

    def _open_thinking(self) -> bytes:
        block = {"type": "thinking", "thinking": "", "signature": ""}
        return self._open("thinking", block, b'"thinking_delta","thinking":')

    def _open_call(self, call: CallBegun) -> bytes:
        block = {"type": "tool_use", "id": tool_use_id(call.id), "name": call.name, "input": {}}
        return self._open(call.call, block, b'"input_json_delta","partial_json":')

    def _open(self, kind: str | int, block: dict[str, Any], delta: bytes) -> bytes:
        closing = self._close()
        self._index += 1
        self._block = kind
        self._delta = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":'
            % self._index
        ) + delta
        return closing + _event("content_block_start", index=self._index, content_block=block)

    def _continued(self, text: str) -> bytes:
        return b"".join((self._delta, orjson.dumps(text), b"}}\n\n"))

    def _close(self) -> bytes:
        if self._block is None:
            return b""
        signature = b""
        if self._block == "thinking":
            delta = {"type": "signature_delta", "signature": ""}
            signature = _event("content_block_delta", index=self._index, delta=delta)
        self._block = None
        return signature + _event("content_block_stop", index=self._index)


def _event(name: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **fields}))
