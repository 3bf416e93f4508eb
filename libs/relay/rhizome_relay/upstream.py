"""A connection to a backend: one exchange at a time, many in a row."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from rhizome_relay.framing import UNTIL_CLOSE, MalformedResponseError, read_response_head
from rhizome_relay.known_heads import PATIENCE, KnownHeads, KnownResponse
from rhizome_relay.picker import Ending
from rhizome_relay.request import Pairs

MAX_HEAD_BYTES = 256 << 10
_BUFFER_BYTES = 64 << 10
_COPIED_BYTES = 16 << 10
"""To copy less is cheaper than to hand over two pieces."""


class Receiver(Protocol):
    """Who gets the response."""

    def on_early_hints(self, headers: Pairs) -> None:
        """A 103 response; the final one follows."""

    def on_response(
        self, status: int, headers: Pairs, length: int, known: KnownResponse | None = None
    ) -> bool:
        """The head of the final response, `length` as in `framing`; returns whether the body is wanted."""

    def on_data(self, parts: list[bytes], trailers: Pairs, ended: bool) -> None:
        """Pieces of the body, at least once after each head; `ended` says that there are no more."""

    def on_chunk(self, piece: bytes, framed: bytes) -> None:
        """The same for one piece, not the last, that came as one whole chunk of HTTP/1.1: `framed`."""

    def on_failure(self, ending: Ending, reason: str) -> None:
        """The response will not come, or not in full."""

    def on_backend_ready(self) -> None:
        """The backend takes more of the request's body."""


class Upstream(asyncio.Protocol):
    """One connection.

    Attributes:
        reused: whether it has served an exchange before this one.
        answered: whether a byte of this exchange's response has arrived.
        idle_since: when its last exchange ended, in the loop's time.
        write_paused: whether the backend reads too slowly.
    """

    __slots__ = (
        "_announced", "_between", "_complete", "_dirty", "_end", "_head_bytes", "_head_only", "_headers",
        "_heads", "_hints", "_keep_alive", "_length", "_on_closed", "_parser", "_parts", "_receiver",
        "_status", "_strangers", "_trailers", "_transport", "_unwanted", "answered", "idle_since", "on_body",
        "reused", "write_paused",
    )  # fmt: skip

    def __init__(self, on_closed: Callable[[Upstream], None], heads: KnownHeads[KnownResponse]) -> None:
        self._on_closed = on_closed
        self._heads = heads
        self._strangers = 0  # heads in a row that nobody had seen before
        self._receiver: Receiver | None = None
        self._parts: list[bytes] = []
        self.on_body = self._parts.append  # what the parser calls, without a frame of ours between
        self._parser: httptools.HttpResponseParser | None = None
        self.reused = self.write_paused = False
        self._unwanted = False
        self.idle_since = 0.0
        self._reset()

    @property
    def closing(self) -> bool:
        """Whether it is of no more use."""
        return self._transport.is_closing()

    def begin(self, receiver: Receiver, head_only: bool) -> None:
        """Start an exchange; `head_only` for HEAD, whose response has a body's headers but no body."""
        self._reset()
        self._receiver = receiver
        self._head_only = head_only

    def write(self, data: bytes, body: bytes = b"") -> None:
        """Send a part of the request."""
        if self._transport.is_closing():  # `connection_lost` is on its way
            return
        if len(body) > _COPIED_BYTES:
            self._transport.writelines((data, body))
        else:
            self._transport.write(data + body)

    def release(self) -> bool:
        """Detach the receiver of a response that has ended; returns whether another exchange may follow."""
        self._receiver = None
        self.reused = True
        if self._head_only:
            self._parser = None  # it waits for a body
        return self._complete and self._keep_alive and not self._dirty and not self._transport.is_closing()

    def abort(self) -> None:
        """Close at once, or as soon as the connection stands; the receiver hears nothing more."""
        self._receiver = None
        self._unwanted = True
        if hasattr(self, "_transport"):
            self._transport.abort()

    def pause_reading(self) -> None:
        """Let the backend wait."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _reset(self) -> None:
        self._headers: Pairs = []
        self._trailers: Pairs = []
        self._hints: list[Pairs] = []
        self._head_bytes = self._length = self._status = self._end = 0
        self._head_only = self._announced = self._complete = self._dirty = self._keep_alive = False
        self._between = False  # two chunks of a body: all before is read, nothing of the next one
        self.answered = False
        self._parts.clear()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        if self._unwanted:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """A piece of a response, unless nobody asked."""
        receiver = self._receiver
        if receiver is None:  # nobody asked
            self._transport.abort()
            return
        if self._between and (piece := whole_chunk(data)):
            receiver.on_chunk(piece, data)
            return
        first = not self.answered and self._strangers < PATIENCE and not self._head_only
        self.answered = True
        if first and self._recall(receiver, data):
            return
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._complete:
                cause = error.__context__
                if cause is not None and not isinstance(cause, MalformedResponseError):
                    raise cause from None
                self._fail(Ending.TRUNCATED if self._announced else Ending.MALFORMED, str(cause or error))
                return
            self.on_message_begin()
        if first:
            self._learn(data)
        if not self._announced and not self._announce(receiver, len(data)):
            return
        if self._between and not data.endswith(b"\r\n"):
            self._between = False  # a size has begun
        parts = self._parts
        if self._dirty:
            del parts[self._end :]
        elif self._head_only and parts:
            self._dirty = True
            parts.clear()
        receiver.on_data(parts, self._trailers, self._complete)
        parts.clear()

    def _recall(self, receiver: Receiver, data: bytes) -> bool:
        """Pass a whole response on whose head came before; returns whether it is one."""
        found = self._heads.find(data)
        if found is None:
            return False
        known, body, _ = found
        self._strangers = 0
        self._status, self._length = known.status, len(body)
        self._announced = self._complete = self._keep_alive = True
        if receiver.on_response(known.status, known.headers, len(body), known):
            receiver.on_data([body] if body else [], [], True)
        return True

    def _learn(self, data: bytes) -> None:
        """Keep what the parser has read, if it was one whole good answer."""
        self._strangers += 1
        good = self._complete and self._status == 200 and self._keep_alive
        if good and not self._dirty and not self._hints:
            self._heads.learn(data, self._length, KnownResponse(200, self._headers))

    def _announce(self, receiver: Receiver, arrived: int) -> bool:
        """Pass heads on that have arrived; returns whether the final one has and its body is wanted."""
        hints, self._hints = self._hints, []
        for headers in hints:
            receiver.on_early_hints(headers)
        if self._status == 0:
            self._head_bytes += arrived
            if self._head_bytes > MAX_HEAD_BYTES:
                self._fail(Ending.MALFORMED, "its headers are too long")
            return False
        self._announced = True
        headers, self._headers = self._headers, []
        return receiver.on_response(self._status, headers, self._length)

    def connection_lost(self, exc: Exception | None) -> None:
        """The backend is gone; for some responses that is the end."""
        self._on_closed(self)
        self._parser = None  # it calls methods of this object: a circle would outlive the connection
        if (receiver := self._receiver) is None:
            return
        if self._announced and self._length == UNTIL_CLOSE and exc is None:
            self._complete = True
            receiver.on_data([], [], True)
        else:
            self._fail(Ending.TRUNCATED if self._announced else Ending.LOST, "it closed the connection")

    def pause_writing(self) -> None:
        """The backend reads too slowly."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """The backend has caught up."""
        self.write_paused = False
        if self._receiver is not None:
            self._receiver.on_backend_ready()

    def _fail(self, ending: Ending, reason: str) -> None:
        receiver, self._receiver = self._receiver, None
        self._transport.abort()
        if receiver is not None:
            receiver.on_failure(ending, reason)

    # the parser's

    def on_message_begin(self) -> None:
        """Another response begins: what follows a response belongs to nobody."""
        if self._complete and not self._dirty:
            self._dirty = True
            self._end = len(self._parts)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        if not self._complete:
            (self._trailers if self._status else self._headers).append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """A head is complete: an interim one or the final one."""
        parser = self._parser
        if self._complete or parser is None:
            return
        status = parser.get_status_code()
        headers = self._headers
        if status < 200:
            if status == 101:
                raise MalformedResponseError("it changes to a protocol that nobody asked for")
            if status == 103:
                self._hints.append(headers)
            self._headers = []
            return
        version = parser.get_http_version()
        self._length, self._keep_alive = read_response_head(status, self._head_only, version, headers)
        self._status = status
        self._complete = self._head_only

    def on_chunk_header(self) -> None:
        """The size of a chunk was read."""
        self._between = False

    def on_chunk_complete(self) -> None:
        """All of a chunk was read."""
        self._between = True

    def on_message_complete(self) -> None:
        """A response has ended."""
        self._between = False
        if self._status:
            self._complete = True


def whole_chunk(data: bytes) -> bytes:
    """What is in a piece of a body that is exactly one chunk, written as most servers do; else nothing.

    Servers send an event with one write, so that is what nearly every event of a stream arrives as. To tell
    costs less than to parse, and it needs no other frame on its way to the client.
    """
    end = data.find(b"\r\n", 1, 10)
    size = len(data) - end - 4
    if end < 0 or size < 1 or not data.endswith(b"\r\n") or data[:end] != b"%x" % size:
        return b""
    return data[end + 2 : -2]
