"""What a streamed answer says, written into the request's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from rhizome_launcher.bench.connection import Piece
from rhizome_launcher.bench.records import RequestRecord
from rhizome_launcher.bench.sse import SseLines

_SHOWN_CHARS = 300


class StreamedAnswer:
    """Reads an OpenAI stream.

    Args:
        record: gets times, counts and errors.
        chat: whether it is a chat completion.
    """

    def __init__(self, record: RequestRecord, *, chat: bool) -> None:
        self._record = record
        self._chat = chat
        self._lines = SseLines()
        self._complete = False

    def read(self, pieces: Sequence[Piece]) -> None:
        """Read what came next.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: this is no OpenAI stream.
        """
        for time_s, data in pieces:
            for payload in self._lines.feed(data):
                self._read_event(payload, time_s)

    def end(self) -> None:
        """Settle the count of tokens, and whether the answer came whole, once the response is complete."""
        record = self._record
        if not record.counted_by_server:
            record.output_tokens = len(record.text_s)
        if not self._complete and record.ok:
            record.error = "truncated"
            count = len(record.text_s)
            record.detail = f"the stream ended after {count} pieces, without a finish reason or [DONE]"

    def _read_event(self, payload: bytes, time_s: float) -> None:
        if payload == b"[DONE]":
            self._complete = True
            return
        record = self._record
        event = orjson.loads(payload)
        if error := event.get("error"):
            record.error, record.detail = "error_event", shown(orjson.dumps(error))
            return
        if usage := event.get("usage"):
            _count(usage, record)
        for choice in event.get("choices") or ():
            if _has_text(choice, self._chat):
                record.text_s.append(time_s)
            if choice.get("finish_reason"):
                self._complete = True


def shown(body: bytes) -> str:
    """The beginning of what a server said, on one line."""
    text = " ".join(body.decode("utf-8", "replace").split())
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def _count(usage: Mapping[str, Any], record: RequestRecord) -> None:
    record.counted_by_server = True
    record.prompt_tokens = int(usage["prompt_tokens"])
    record.output_tokens = int(usage.get("completion_tokens") or 0)
    details = usage.get("prompt_tokens_details") or {}
    record.cached_tokens = int(details.get("cached_tokens") or 0)


def _has_text(choice: Mapping[str, Any], chat: bool) -> bool:
    """Whether a choice of a chunk holds something generated, rather than a role or an end."""
    if not chat:
        return bool(choice.get("text"))
    delta = choice.get("delta") or {}
    return bool(
        delta.get("content")
        or delta.get("reasoning_content")
        or delta.get("reasoning")
        or delta.get("tool_calls")
    )
