"""uvicorn's HTTP/1.1 protocol with what this gateway needs besides.

A cap on headers, errors in the envelope, bodies beside `Upgrade`, and for each request a `ClientConnection`.
"""

from __future__ import annotations

import asyncio
import http
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rhizome_gateway.errors import ApiError
from rhizome_gateway.http.connection import SCOPE_KEY, ClientConnection, reset

_MOST_PIPELINED = 16
"""Requests on one connection that are not answered; no client of this API sends a second."""


class _HeadersTooLargeError(Exception):
    """Ends the parsing of a request."""


class _UpgradeIgnoringProtocol(HttpToolsProtocol):
    """Reads the body of a request that offers another protocol.

    Java's HTTP client says `Upgrade: h2c` in its first request. A server may ignore that offer, but httptools
    ends the message right after such headers. So it is shown the same message once more, without the offer,
    and what it says about the headers is not heard a second time.
    """

    body_head = b""
    resuming = False

    def on_message_begin(self) -> None:
        if not self.resuming:
            self.body_head = b""
            super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self.resuming:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.resuming:
            super().on_header(name, value)
            if name.lower() in (b"content-length", b"transfer-encoding"):
                self.body_head = b"POST / HTTP/1.1\r\n%b: %b\r\n\r\n" % (name, value)

    def on_headers_complete(self) -> None:
        if not self.resuming:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not (self.body_head and self.parser.should_upgrade()):  # else the body is still to come
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        while data and not self.transport.is_closing():
            data = self._parse(data)

    def _parse(self, data: bytes) -> bytes:
        """Return what is left behind the headers of a request that offered an upgrade.

        The time-out between requests goes on until one begins: any byte would switch it off for ever.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self.body_head and not self._resume():
                return b""
            return data[offer.args[0] :]
        except httptools.HttpParserError:
            self.send_400_response("")
        return b""

    def _resume(self) -> bool:
        """Show the parser the same message without the offer; whether it is a message."""
        self.resuming = True
        try:
            self.parser.feed_data(self.body_head)
        except httptools.HttpParserError:
            self.send_400_response("")
            return False
        finally:
            self.resuming = False
        return True


class _ConnectedProtocol(_UpgradeIgnoringProtocol):
    """Hands each request its `ClientConnection`."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.open_connections: list[ClientConnection] = []

    def on_headers_complete(self) -> None:
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            # Pipelined requests wait in order; those that were answered need nothing more.
            self.open_connections = [c for c in self.open_connections if not c.complete]
            connection = ClientConnection(self.cycle)
            self.open_connections.append(connection)
            if len(self.open_connections) > _MOST_PIPELINED:
                self.transport.close()
            self.cycle.scope[SCOPE_KEY] = connection  # type: ignore[literal-required]
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.pipeline and len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.transport.close()  # nobody reads this body yet

    def on_message_complete(self) -> None:
        super().on_message_complete()
        # uvicorn stops reading while a large body or a pipelined request waits, and would not see the client
        # leave. All of this request is here, so what comes now is small, or somebody's next request.
        self.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        connections, self.open_connections = self.open_connections, []
        for connection in connections:
            connection.lose()

    def pause_writing(self) -> None:
        super().pause_writing()
        for connection in self.open_connections:
            connection.paused = True

    def resume_writing(self) -> None:
        super().resume_writing()
        for connection in self.open_connections:
            connection.resume()


class _CappedProtocol(_ConnectedProtocol):
    """Keeps clients from sending headers without an end, in size or in time."""

    max_header_bytes: int
    header_timeout_s: float
    stalled_s: float
    header_bytes = 0
    in_headers = False
    gone = False
    header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        if not self.resuming:
            self._unset_keepalive_if_required()
            self.header_bytes, self.in_headers = 0, True
        super().on_message_begin()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Most headers come whole. Behind a request that is not answered yet, none have to come in time.
        untimed = self.in_headers and self.header_timer is None and not self.transport.is_closing()
        if untimed and self._is_idle():
            self._expect_headers()

    def on_headers_complete(self) -> None:
        self.in_headers = False
        self._stop_waiting()
        self._unset_keepalive_if_required()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()
        if self.in_headers:  # the next request began before this answer was complete
            self._unset_keepalive_if_required()
            self._stop_waiting()
            self._expect_headers()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        if self.in_headers or self.resuming:  # trailers are no headers, whatever they say
            super().on_header(name, value)

    def send_400_response(self, msg: str) -> None:
        if self.header_bytes > self.max_header_bytes:
            self._refuse(
                ApiError(
                    431,
                    f"The headers are too large; at most {self.max_header_bytes} bytes are accepted.",
                    code="headers_too_large",
                )
            )
        else:
            self._refuse(ApiError(400, "This is not a valid HTTP request.", code="invalid_http"))

    def _expect_headers(self) -> None:
        self.header_timer = self.loop.call_later(self.header_timeout_s, self._on_slow_headers)

    def _stop_waiting(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None

    def _on_slow_headers(self) -> None:
        """A client that sends a byte now and then must not keep a connection for ever."""
        if not self.in_headers:  # nothing came at all; some clients connect ahead of time
            self._close()
            return
        self._refuse(
            ApiError(
                408,
                f"The headers did not arrive within {self.header_timeout_s:g} s.",
                kind="timeout_error",
                code="timeout",
            )
        )

    def _count(self, size: int) -> None:
        self.header_bytes += size
        if self.header_bytes > self.max_header_bytes:
            raise _HeadersTooLargeError  # httptools turns it into a parser error

    def timeout_keep_alive_handler(self) -> None:
        """Called some seconds after an answer, if no request began."""
        self._close()

    def _close(self) -> None:
        """Hang up once all is sent; a client that does not read it must not keep the connection for ever."""
        self.transport.close()
        self.loop.call_later(self.stalled_s, self._give_up)

    def _give_up(self) -> None:
        if not self.gone:  # else its descriptor may be somebody else's by now
            reset(self.transport)

    def _is_idle(self) -> bool:
        """Whether all requests so far were answered."""
        return all(connection.complete for connection in self.open_connections)

    def _refuse(self, error: ApiError) -> None:
        waiting = [connection for connection in self.open_connections if not connection.complete]
        if len(waiting) > 1 or (waiting and waiting[0].started):
            self._close()  # an answer to an earlier request is on its way; nothing fits into it
            return
        body = error.body()
        head = (
            f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._close()


def capped_protocol(
    max_header_bytes: int, header_timeout_s: float, stalled_s: float
) -> type[HttpToolsProtocol]:
    """Make the protocol class for uvicorn.

    Args:
        max_header_bytes: most bytes of URL and headers that are kept.
        header_timeout_s: time for all headers of a request, from its first byte or the connection's begin.
        stalled_s: time that a client has to read the rest of an answer when the connection ends.
    """
    limits = {
        "max_header_bytes": max_header_bytes,
        "header_timeout_s": header_timeout_s,
        "stalled_s": stalled_s,
    }
    return type("GatewayProtocol", (_CappedProtocol,), limits)
