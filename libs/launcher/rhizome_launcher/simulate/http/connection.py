"""One client connection at protocol level: requests in, bytes out, and every way to break off."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import httptools
import orjson

from rhizome_launcher.simulate.faults import Cut

_DRIP_EVERY_S: Final = 0.1
_MOST_BODY_BYTES: Final = 64 * 1024 * 1024
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A whole request.

    Attributes:
        method: as sent.
        path: without the query.
        body: all of it.
        keep_alive: whether the client wants to send another one.
        chunked: whether the answer may be sent in chunks; HTTP/1.0 knows none.
    """

    method: str
    path: str
    body: bytes
    keep_alive: bool
    chunked: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    body: bytes = b""
    status: int = 200
    content_type: str = "application/json"

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Answer:
        """From what JSON can say."""
        return cls(orjson.dumps(value), status)

    @classmethod
    def error(cls, status: int, message: str, kind: str = "invalid_request_error") -> Answer:
        """In OpenAI's envelope."""
        detail = {"message": message, "type": kind, "param": None, "code": status}
        return cls.json({"error": detail}, status)


class Connection(asyncio.Protocol):
    """Reads requests and hands them out one at a time, in order.

    Args:
        serve: answers a request, at once or later, with `respond` or with `send` and `done`.

    Attributes:
        when_lost: called when the client leaves before `done`.
    """

    def __init__(self, serve: Callable[[Connection, HttpRequest], None], open_ones: set[Connection]) -> None:
        self._serve = serve
        self._open_ones = open_ones
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[HttpRequest] = deque()
        self._current: HttpRequest | None = None
        self._url = b""
        self._body = bytearray()
        self._drip: bytearray | None = None
        self._done_after_drip = False
        self._transport: asyncio.Transport | None = None
        self.when_lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        self._open_ones.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of `asyncio.Protocol`."""
        self._transport = None
        self._open_ones.discard(self)
        self._queue.clear()
        self._leave()

    def eof_received(self) -> bool:
        """Part of `asyncio.Protocol`: who will send no more is taken to be gone, as uvicorn takes it."""
        return False

    def data_received(self, data: bytes) -> None:
        """Part of `asyncio.Protocol`."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse("this server speaks HTTP/1.1 only")
        except httptools.HttpParserError:
            self._refuse("this is not HTTP/1.1")

    def on_message_begin(self) -> None:
        """Part of httptools' protocol."""
        self._url, self._body = b"", bytearray()

    def on_url(self, url: bytes) -> None:
        """Part of httptools' protocol."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """Part of httptools' protocol."""
        self._body += body
        if len(self._body) > _MOST_BODY_BYTES:
            self._refuse("the body is too large", 413)

    def on_message_complete(self) -> None:
        """Part of httptools' protocol."""
        if self._transport is None:
            return
        request = HttpRequest(
            self._parser.get_method().decode("ascii"),
            self._url.partition(b"?")[0].decode("ascii", "replace"),
            bytes(self._body),
            self._parser.should_keep_alive(),
            self._parser.get_http_version() != "1.0",
        )
        self._queue.append(request)
        if self._current is None:
            self._next()

    def send(self, data: bytes) -> None:
        """Send bytes of the current answer."""
        if self._drip is not None:
            self._drip += data
        elif self._transport is not None:
            self._transport.write(data)

    def respond(self, answer: Answer) -> None:
        """Send a whole answer."""
        keep_alive = self._current is not None and self._current.keep_alive
        ending = "" if keep_alive else "connection: close\r\n"
        head = (
            f"HTTP/1.1 {answer.status} {_phrase(answer.status)}\r\ncontent-type: {answer.content_type}\r\n"
            f"content-length: {len(answer.body)}\r\n{ending}\r\n"
        )
        body = b"" if self._current is not None and self._current.method == "HEAD" else answer.body
        self.send(head.encode() + body)
        self.done()

    def done(self) -> None:
        """The current answer is complete."""
        if self._drip:
            self._done_after_drip = True
            return
        self._drip = None
        self.when_lost = None
        current, self._current = self._current, None
        if current is not None and not current.keep_alive:
            self.close()
        elif self._queue:
            self._next()

    def close(self) -> None:
        """Close in an orderly way."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Reset the connection."""
        if self._transport is not None:
            self._transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
            )
            self._transport.abort()

    def cut(self, cut: Cut) -> None:
        """Break off as a fault says."""
        if cut.kind == "reset":
            self.abort()
        elif cut.kind == "half_close" and self._transport is not None:
            self._transport.write_eof()

    def slow_down(self) -> None:
        """From now on the current answer goes out byte by byte."""
        if self._drip is None and self._transport is not None:
            self._drip = bytearray()
            asyncio.get_running_loop().call_later(_DRIP_EVERY_S, self._let_drip)

    def _let_drip(self) -> None:
        if self._transport is None or self._drip is None:
            return
        if self._drip:
            self._transport.write(bytes(self._drip[:1]))
            del self._drip[:1]
        if self._done_after_drip and not self._drip:
            self._done_after_drip = False
            self.done()
        else:
            asyncio.get_running_loop().call_later(_DRIP_EVERY_S, self._let_drip)

    def _next(self) -> None:
        self._current = self._queue.popleft()
        self._serve(self, self._current)

    def _refuse(self, message: str, status: int = 400) -> None:
        self._leave()
        self._queue.clear()
        self._current = None
        self.respond(Answer.error(status, message))
        self.close()

    def _leave(self) -> None:
        leave, self.when_lost = self.when_lost, None
        if leave is not None:
            leave()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Simulated"
