"""Completions on their way out: as events, or whole.

An event differs from the one before by its word only, and all words are equally long. So what surrounds the
word, the chunk's length included, is made once per request, and a token costs three appends and its share of
a write.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from rhizome_launcher.simulate.faults import Cut
from rhizome_launcher.simulate.http.connection import Answer, Connection
from rhizome_launcher.simulate.request import TOKEN_BYTES, SimulatedRequest

_WORD: Final = "\N{REPLACEMENT CHARACTER}"
_NO_CUT: Final = -1


@dataclass(frozen=True, slots=True)
class Form:
    """How answers look.

    Attributes:
        chat: whether they are chat completions.
        model: its name.
        vocabulary: words, `TOKEN_BYTES` each.
        timings: whether llama.cpp's timings belong to the end.
        finish_reason: how the output ends.
    """

    chat: bool
    model: str
    vocabulary: Sequence[bytes]
    timings: bool
    finish_reason: str


class _Completing:
    def __init__(self, connection: Connection, form: Form, cut: Cut | None) -> None:
        self._connection = connection
        self._chat = form.chat
        self._vocabulary = form.vocabulary
        self._timings = form.timings
        self._model = form.model
        self._finish_reason = form.finish_reason
        self._cut = cut
        self._object = "chat.completion" if form.chat else "text_completion"
        self._id = f"{'chatcmpl' if form.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def started(self, request: SimulatedRequest) -> None:
        """Part of `Sink`: nobody is told."""

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def _end(self, request: SimulatedRequest) -> dict[str, Any]:
        """What llama.cpp says beside the usage."""
        if not self._timings:
            return {}
        started_s, first_s = request.started_s or 0.0, request.first_token_s or 0.0
        computed = request.prompt_tokens - request.cached
        return {
            "timings": {
                "cache_n": request.cached,
                "prompt_n": computed,
                "prompt_ms": (first_s - started_s) * 1e3,
                "predicted_n": request.generated,
            }
        }


class WholeAnswer(_Completing):
    """Sends everything at the end.

    Args:
        connection: where to send.
        form: how it looks.
        cut: where it ends too early.
    """

    def __init__(self, connection: Connection, form: Form, cut: Cut | None) -> None:
        super().__init__(connection, form, cut)
        self._words: list[bytes] = []
        self._ended: SimulatedRequest | None = None

    def token(self, index: int) -> None:
        """Part of `Sink`."""
        self._words.append(self._vocabulary[index])

    def finished(self, request: SimulatedRequest) -> None:
        """Part of `Sink`."""
        self._ended = request

    def flush(self) -> None:
        """Part of `Sink`: send the answer once it is complete."""
        request, self._ended = self._ended, None
        if request is None:
            return
        if self._cut is not None:  # no byte was sent, whatever the number of tokens
            self._connection.cut(self._cut)
            return
        text = b"".join(self._words).decode()
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": self._finish_reason}
        choice |= {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        body = self._envelope(self._object, [choice]) | {"usage": usage(request)} | self._end(request)
        self._connection.respond(Answer.json(body))


class StreamAnswer(_Completing):
    """Sends an event per token; the first `flush` sends the headers.

    Args:
        connection: where to send.
        form: how it looks.
        cut: where it ends too early.
        chunked: whether the body is; else the end of the connection ends it.
        include_usage: whether usage is the last event.
    """

    def __init__(
        self, connection: Connection, form: Form, cut: Cut | None, chunked: bool, include_usage: bool
    ) -> None:
        super().__init__(connection, form, cut)
        self._until_cut = _NO_CUT if cut is None else cut.after_tokens
        self._chunked = chunked
        self._include_usage = include_usage
        self._kind = f"{self._object}.chunk" if self._chat else self._object
        word = {"delta": {"content": _WORD}} if self._chat else {"text": _WORD}
        event = self._event(self._choice(word, None))
        before, after = event.split(_WORD.encode())
        size = len(before) + TOKEN_BYTES + len(after)
        self._before, self._after = (
            (b"%x\r\n" % size + before, after + b"\r\n") if chunked else (before, after)
        )
        self._out: list[bytes] = [_stream_head(chunked)]
        self._over = False

    def started(self, request: SimulatedRequest) -> None:
        """Part of `Sink`: a chat begins with its role."""
        if self._chat:
            role = self._event(self._choice({"delta": {"role": "assistant", "content": ""}}, None))
            self._out.append(self._framed(role))

    def token(self, index: int) -> None:
        """Part of `Sink`."""
        if self._until_cut == 0:
            return
        self._until_cut -= 1
        self._out += (self._before, self._vocabulary[index], self._after)

    def finished(self, request: SimulatedRequest) -> None:
        """Part of `Sink`."""
        self._over = True
        if self._until_cut == 0:
            return
        rest: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        last = self._choice(rest, self._finish_reason)
        self._out.append(self._framed(self._event(last, self._end(request))))
        if self._include_usage:
            self._out.append(self._framed(self._event([], {"usage": usage(request)})))
        self._out.append(self._framed(b"data: [DONE]\n\n"))
        if self._chunked:
            self._out.append(b"0\r\n\r\n")

    def flush(self) -> None:
        """Part of `Sink`: one write for all tokens of a wake-up."""
        if self._out:
            self._connection.send(b"".join(self._out))
            self._out.clear()
        if self._until_cut == 0 and self._cut is not None:
            cut, self._cut = self._cut, None
            self._connection.cut(cut)
        elif self._over and self._until_cut != 0:
            self._over = False
            self._connection.done()

    def _choice(self, rest: dict[str, Any], reason: str | None) -> list[dict[str, Any]]:
        return [{"index": 0, **rest, "logprobs": None, "finish_reason": reason}]

    def _event(self, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> bytes:
        event = self._envelope(self._kind, choices)
        if self._include_usage:
            event["usage"] = None
        return b"data: " + orjson.dumps(event | (more or {})) + b"\n\n"

    def _framed(self, event: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(event), event) if self._chunked else event


def usage(request: SimulatedRequest) -> dict[str, Any]:
    """Tokens counted."""
    return {
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": request.generated,
        "total_tokens": request.tokens,
        "prompt_tokens_details": {"cached_tokens": request.cached},
    }


def _stream_head(chunked: bool) -> bytes:
    framing = b"transfer-encoding: chunked" if chunked else b"connection: close"
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
        + framing
        + b"\r\n\r\n"
    )
