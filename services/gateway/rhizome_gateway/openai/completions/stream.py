"""Server-sent events of a streamed completion."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from rhizome_gateway.errors import ApiError
from rhizome_gateway.generation.events import Ended, Event
from rhizome_gateway.generation.summary import Summary
from rhizome_gateway.openai.completions.logprobs import logprobs_object
from rhizome_gateway.openai.completions.shown import Piece, ShownChoice
from rhizome_gateway.openai.objects import usage_object
from rhizome_gateway.openai.sse import DONE, KEEP_ALIVE, error_event


class CompletionStream:
    """Writes the chunks of one stream; what never changes is encoded once. See `generation.writer`.

    Args:
        head: the fields that all chunks begin with, as one JSON object.
        summary: of the response.
        shown: the choices.
        include_usage: chunks hold `"usage": null`, and a last one holds the usage.
    """

    keep_alive = KEEP_ALIVE

    __slots__ = ("_choice_heads", "_head", "_shown", "_summary", "_usage")

    def __init__(
        self, head: bytes, summary: Summary, shown: Sequence[ShownChoice], *, include_usage: bool
    ) -> None:
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._usage = b',"usage":null' if include_usage else b""
        self._summary = summary
        self._shown = shown
        self._choice_heads = [self._head + b'{"index":%d,"text":' % i for i in range(len(shown))]

    def event(self, index: int, event: Event) -> bytes:
        """The chunk for one event."""
        if isinstance(event, Ended):
            return self._finish(index, event)
        piece = self._shown[index].piece(event)
        if piece is None or not (piece.text or piece.logprobs):
            return b""
        return self._chunk(index, piece)

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
        if len(self._summary.ended) == len(self._shown):
            extra = b',"performance":' + orjson.dumps(self._summary.performance)
        return self._chunk(index, Piece(""), finish_reason=orjson.dumps(ended.reason), extra=extra)

    def _chunk(
        self, index: int, piece: Piece, *, finish_reason: bytes = b"null", extra: bytes = b""
    ) -> bytes:
        return b"".join(
            (
                self._choice_heads[index],
                orjson.dumps(piece.text),
                b',"logprobs":',
                b"null" if piece.logprobs is None else logprobs_object([piece.logprobs]),
                b',"finish_reason":',
                finish_reason,
                b"}]",
                self._usage,
                extra,
                b"}\n\n",
            )
        )
