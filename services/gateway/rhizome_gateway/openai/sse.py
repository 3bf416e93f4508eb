"""Server-sent events of a streamed chat completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from rhizome_gateway.errors import ApiError
from rhizome_gateway.generation.tool_calls import ParsedCall

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",
}
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


class ChunkWriter:
    """Writes the chunks of one stream; what never changes is encoded once.

    Args:
        completion_id: `chatcmpl-...`.
        created: seconds since the epoch.
        model: as the client asked for it.
        fingerprint: `system_fingerprint`.
        include_usage: chunks hold `"usage": null`, and a last one holds the usage.
    """

    def __init__(
        self, completion_id: str, created: int, model: str, fingerprint: str, *, include_usage: bool
    ) -> None:
        head = orjson.dumps(
            {
                "id": completion_id,
                "object": "chat.completion.chunk",
                "created": created,
                "model": model,
                "system_fingerprint": fingerprint,
            }
        )
        self._head = b"data: " + head[:-1] + b',"choices":['
        self._usage = b',"usage":null' if include_usage else b""

    def role(self, index: int) -> bytes:
        """The first chunk of a choice."""
        return self._chunk(index, b'{"role":"assistant","content":"","refusal":null}')

    def text(self, index: int, text: str, logprobs: dict[str, Any] | None = None) -> bytes:
        """More text."""
        return self._chunk(
            index,
            b'{"content":' + orjson.dumps(text) + b"}",
            b"null" if logprobs is None else orjson.dumps(logprobs),
        )

    def tool_calls(self, index: int, calls: Sequence[ParsedCall]) -> bytes:
        """Tool calls: first each call's name, then its arguments, as two chunks."""
        chunks = b""
        for position, call in enumerate(calls):
            opening = {
                "index": position,
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": ""},
            }
            arguments = {"index": position, "function": {"arguments": call.arguments}}
            for part in (opening, arguments):
                chunks += self._chunk(index, orjson.dumps({"tool_calls": [part]}))
        return chunks

    def finish(self, index: int, reason: str, performance: dict[str, float] | None) -> bytes:
        """The last chunk of a choice; that of the last choice says where the time went."""
        extra = b"" if performance is None else b',"performance":' + orjson.dumps(performance)
        return self._chunk(index, b"{}", finish_reason=orjson.dumps(reason), extra=extra)

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The chunk after all choices, where the client asked for it."""
        return self._head + b'],"usage":' + orjson.dumps(usage) + b"}\n\n"

    def _chunk(
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
                self._head,
                b'{"index":%d,"delta":' % index,
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


def error_event(error: ApiError) -> bytes:
    """An error after the status line was sent."""
    return b"data: " + error.body() + b"\n\n"
