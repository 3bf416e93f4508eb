"""A message as Anthropic's API shows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn

import orjson
from pydantic_core import from_json

from rhizome_gateway.anthropic.objects import message_object, stop_object, tool_use_id, usage_object
from rhizome_gateway.anthropic.stream import MessageStream
from rhizome_gateway.generation.summary import Answer, CollectedCall, CollectedText, Summary


class MessageRendering:
    """Shows one message; see `generation.writer.Rendering`.

    Args:
        message_id: names the message.
        model: as the client asked for it.
        request_id: names the request, in errors.
        fills_context: the context, not `max_tokens`, is what limits the answer.
        show_thinking: False keeps the text of thinking back; its blocks remain.
    """

    def __init__(
        self, message_id: str, model: str, *, request_id: str, fills_context: bool, show_thinking: bool
    ) -> None:
        self._message_id = message_id
        self._model = model
        self._request_id = request_id
        self._fills_context = fills_context
        self._show_thinking = show_thinking

    def stream(self, summary: Summary) -> MessageStream:
        """Begin a stream."""
        return MessageStream(
            self._message_id,
            self._model,
            request_id=self._request_id,
            fills_context=self._fills_context,
            show_thinking=self._show_thinking,
        )

    def whole(self, answers: Sequence[Answer], summary: Summary) -> bytes:
        """The whole message."""
        (answer,) = answers
        assert answer.ended is not None
        message = message_object(
            self._message_id,
            self._model,
            content=[self._block(part) for part in answer.parts],
            usage=usage_object(answer.ended),
        )
        return orjson.dumps(message | stop_object(answer.ended, fills_context=self._fills_context))

    def _block(self, part: CollectedText | CollectedCall) -> dict[str, Any]:
        if isinstance(part, CollectedCall):
            return {
                "type": "tool_use",
                "id": tool_use_id(part.id),
                "name": part.name,
                "input": _input(part.arguments),
            }
        if part.thinking:
            text = part.text if self._show_thinking else ""
            return {"type": "thinking", "thinking": text, "signature": ""}
        return {"type": "text", "text": part.text}


def _input(arguments: str) -> orjson.Fragment:
    """The arguments exactly as the model wrote them; of those that were cut off, what is certain.

    A stream's client comes to the same value: it adds the pieces up, and reads an unfinished object this way.
    """
    try:
        json.loads(arguments, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        try:
            certain = from_json(arguments, allow_partial=True, allow_inf_nan=False)
            return orjson.Fragment(json.dumps(certain, allow_nan=False))
        except ValueError:
            return orjson.Fragment(b"{}")
    return orjson.Fragment(arguments)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
