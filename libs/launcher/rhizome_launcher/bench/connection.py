"""One HTTP/1.1 connection to the server under load.

The load generator runs beside the server and takes processor time from it, so as little as possible happens
for each piece of an answer: it is put aside with its time, and handed on many at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

import httptools

Piece = tuple[float, bytes]
"""A part of a body: when it came, in seconds on `time.perf_counter`, and its bytes."""

PIECES_AT_ONCE = 64
"""How many pieces wait before they are handed on: a bound on memory, and on how long reading them takes."""


class BadResponseError(Exception):
    """What came is no HTTP response."""


class Connection(asyncio.Protocol):
    """Sends requests one after the other, each when the response before it is complete.

    Attributes:
        reusable: whether another request may follow.
    """

    def __init__(self) -> None:
        self.reusable = True
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._ended: asyncio.Future[None] | None = None
        self._now = 0.0
        self._begin(lambda status, pieces: None)

    async def exchange(self, request: bytes, receive: Callable[[int, list[Piece]], None]) -> None:
        """Send a request and wait for the end of its response.

        Args:
            request: head and body.
            receive: called with the status and what came of the body since the last call, now and then and at
                the end, also where the connection is lost before it. What it raises ends the exchange.

        Raises:
            ConnectionError: the connection was lost.
            BadResponseError: the server does not speak HTTP.
        """
        assert self._transport is not None
        if self._transport.is_closing():
            raise ConnectionResetError("the server closed the connection")
        self._begin(receive)
        ended = self._ended = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        complete = False
        try:
            await ended
            complete = True
        finally:
            self._ended = None
            if ended.done() and not ended.cancelled():
                ended.exception()  # Seen, also where a time-out comes at the same moment.
            if not (complete and self.reusable):
                self.close()

    def close(self) -> None:
        """Drop the connection."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Note the time, and what it is a part of."""
        self._now = time.perf_counter()
        if self._ended is None:
            self.close()  # Nothing was asked.
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._end(BadResponseError(f"this is no HTTP response: {error}"))
            return
        if self._complete:
            self._end(None)
        elif len(self._pieces) >= PIECES_AT_ONCE:
            self._hand_on()

    def connection_lost(self, error: Exception | None) -> None:
        """End the exchange: some responses end with their connection, others are cut off."""
        self.reusable = False
        if error is None and self._status and not self._framed:
            self._end(None)  # The end of the connection is the end of the body.
        else:
            place = "in the middle of the answer" if self._status else "before it answered"
            reason = f" ({error})" if error else ""
            self._end(ConnectionResetError(f"the server closed the connection {place}{reason}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser: a header field."""
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        """Called by the parser: the body follows."""
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Called by the parser: a piece of the body."""
        self._pieces.append((self._now, body))

    def on_message_complete(self) -> None:
        """Called by the parser: the response is complete."""
        if self._status < 200:
            self._status, self._framed = 0, False  # An interim response; the real one follows.
            return
        self._complete = True
        self.reusable = self._parser.should_keep_alive()

    def _begin(self, receive: Callable[[int, list[Piece]], None]) -> None:
        self._receive = receive
        self._pieces: list[Piece] = []
        self._status = 0
        self._framed = False
        self._complete = False

    def _hand_on(self) -> bool:
        """Hand on what came; False where the receiver refused it, which ends the exchange."""
        pieces, self._pieces = self._pieces, []
        try:
            self._receive(self._status, pieces)
        except Exception as error:
            self._settle(error)
            return False
        return True

    def _end(self, error: Exception | None) -> None:
        if self._ended is not None and self._hand_on():
            self._settle(error)

    def _settle(self, error: Exception | None) -> None:
        if self._ended is None or self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)
