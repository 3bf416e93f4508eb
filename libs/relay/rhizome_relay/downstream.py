"""A client's connection: reads requests, one after another or several at once, and answers them in order."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools

from rhizome_relay.answer import Answer, render
from rhizome_relay.errors import HttpError, bad_request, too_large, too_long
from rhizome_relay.exchange import Exchange
from rhizome_relay.framing import read_head
from rhizome_relay.known_heads import PATIENCE, KnownRequest, may_come_again
from rhizome_relay.relay import Relay
from rhizome_relay.request import Pairs, RelayRequest
from rhizome_relay.resumable import exchange_for
from rhizome_relay.target import read_target

_MAX_WAITING = 32
"""Requests that a client may send ahead of responses."""

_AHEAD_BYTES = 64 << 10
_BUFFER_BYTES = 64 << 10
_LINGER_S = 2.0
_NEVER = float("inf")
_RESET = struct.pack("ii", 1, 0)
_ID = re.compile(rb"[!-~]{1,128}")


class Downstream(asyncio.Protocol):
    """One connection; a `client.Client`."""

    __deletable__ = ["_parser"]  # noqa: RUF012 - the compiler takes no other form
    __slots__ = (
        "_ahead", "_deaf", "_exchange", "_headers", "_in_head", "_last", "_loop", "_on_closed",
        "_parser", "_peer", "_pieces", "_reading", "_received", "_relay", "_replaying", "_request", "_silent",
        "_starting", "_strangers", "_target", "_transport", "_trusted", "_upload_held", "_waiting",
        "deadline", "write_paused",
    )  # fmt: skip

    def __init__(self, relay: Relay, on_closed: Callable[[Downstream], None]) -> None:
        self._relay = relay
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._exchange: Exchange | None = None
        self._waiting: deque[RelayRequest | HttpError] = deque()
        self._request: RelayRequest | None = None  # whose body is being read
        self._pieces: list[bytes] = []
        self._headers: Pairs = []
        self._target = b""
        self._received = 0
        self._silent = 0  # bytes since the last progress: a head's end, a piece of a body
        self._ahead = 0  # bytes of requests that wait for their turn
        self._strangers = 0  # heads in a row that nobody had seen before
        self._in_head = self._last = self._deaf = self._replaying = self._starting = self._upload_held = False
        self._reading = True
        self.write_paused = False
        self.deadline = self._loop.time() + relay.settings.header_timeout_s

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self._exchange is None and not self._waiting and self._request is None and not self._in_head

    def expire(self) -> None:
        """The deadline has passed."""
        self.deadline = _NEVER
        if self._exchange is not None and not self._transport.is_closing():
            self._exchange.expire()
        elif self._deaf or self._transport.is_closing():
            self._transport.abort()
        elif self.idle:
            self._transport.close()
        else:
            self._refuse(HttpError(408, "request_timeout", "The rest of the request did not arrive in time."))

    def close(self) -> None:
        """Close now if idle, else after the response that is under way."""
        if self.idle:
            self._transport.close()

    def abort(self) -> None:
        """Close, whatever is under way."""
        self._transport.abort()

    # client.Client

    def write(self, data: bytes) -> None:
        """Send to the client."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def hold_upload(self, held: bool) -> None:
        """Stop reading the request's body, or go on."""
        self._upload_held = held
        self._adjust_reading()

    def done(self, keep_alive: bool) -> None:
        """The response is complete."""
        self._exchange = None
        if not keep_alive or self._relay.draining:
            self._hang_up(linger=self._request is not None)
            return
        settings = self._relay.settings
        within_s = settings.header_timeout_s if self._in_head else settings.keep_alive_s
        self.deadline = self._loop.time() + within_s
        self._start_next()

    def break_off(self, *, reset: bool) -> None:
        """End the connection in the middle of a response."""
        self._exchange = None
        if reset:
            sock = self._transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()
        else:
            self._hang_up(linger=False)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if isinstance(peer, tuple) else "127.0.0.1"
        self._trusted = self._relay.settings.trusts(self._peer)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._on_closed(self)
        self._waiting.clear()
        self._gone()
        del self._parser  # it calls methods of this object: a circle would outlive the connection

    def eof_received(self) -> None:
        """The client sends no more: it is taken to be gone, as nothing tells a half-close from a close."""
        if self._exchange is not None:
            self._gone()
            self._transport.abort()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self.write_paused = True
        if self._exchange is not None:
            self._exchange.on_client_slow()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.write_paused = False
        if self._exchange is not None:
            self._exchange.on_client_ready()

    def data_received(self, data: bytes) -> None:
        """A piece of a request, or several requests."""
        if self._deaf:
            return
        between = self._strangers < PATIENCE and self.idle
        if between and (request := self._recall(data)) is not None:
            self._waiting.append(request)
            self._start_next()
            return
        if self._exchange is not None and self._request is not self._exchange.request:
            self._ahead += len(data)
        self._silent += len(data)
        try:
            self._feed(data)
            if self._silent > self._relay.settings.max_head_bytes:
                raise too_long(self._target if self._in_head and not self._headers else b"")
        except HttpError as refusal:
            self._refuse(refusal)
        except httptools.HttpParserError as error:
            cause = error.__context__
            if cause is not None and not isinstance(cause, HttpError):
                raise cause from None
            self._refuse(cause or bad_request("The request is malformed HTTP; send it as RFC 9112 says."))
        if between:
            self._learn(data)
        self._start_next()

    def _recall(self, data: bytes) -> RelayRequest | None:
        """The request that this is, if its head came before and all of it is here."""
        found = self._relay.heads.find(data)
        settings = self._relay.settings
        if found is None or len(found[1]) > min(settings.replay_bytes, settings.max_body_bytes):
            return None
        known, body, digits = found
        self._strangers = 0
        request = known.again(body, digits)
        request.peer, request.trusted = self._peer, self._trusted
        request.id = self._relay.new_id()
        return request

    def _learn(self, data: bytes) -> None:
        """Keep what the parser has read between two requests, if that was one whole one."""
        self._strangers += 1
        request = self._waiting[0] if len(self._waiting) == 1 else None
        if isinstance(request, RelayRequest) and self._request is None and may_come_again(request):
            self._relay.heads.learn(data, len(request.body), KnownRequest(request))

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Only h2c comes here, which Java's client offers by default and which may be ignored. The parser
            # takes what follows for another protocol, so another parser reads it, told how long the body is.
            self._parser = httptools.HttpRequestParser(self)
            if (request := self._request) is not None:
                framing = b"transfer-encoding: chunked"
                if request.length is not None:
                    framing = b"content-length: %d" % request.length
                self._replaying = True
                self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
                self._replaying = False
            self._feed(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if not self._last or self._request is not None:  # else it follows the last request
                raise

    # the parser's

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._replaying:
            return
        if len(self._waiting) >= _MAX_WAITING:
            raise bad_request("Too many requests were sent ahead of their responses on this connection.")
        self._in_head = True
        self._target = b""
        self._headers = []
        if self._exchange is None:
            self.deadline = self._loop.time() + self._relay.settings.header_timeout_s

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer: those go nowhere, as the list is no request's by then."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """A head is complete."""
        if self._replaying:
            return
        parser, settings = self._parser, self._relay.settings
        headers, self._headers = self._headers, []
        self._in_head = False
        self._silent = self._received = 0
        if len(self._target) > settings.max_head_bytes:
            raise too_long(self._target)
        size = sum([len(name) + len(value) for name, value in headers])
        if len(headers) > settings.max_headers or size > settings.max_head_bytes:
            raise too_long()
        version = parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise HttpError(505, "unknown_version", "Speak HTTP/1.1.")
        method = parser.get_method()
        target, path, host = read_target(method, self._target)
        request = RelayRequest(method, target, path, version, headers)
        read_head(request, host, parser.should_upgrade())
        if _ID.fullmatch(request.id) is None:
            request.id = self._relay.new_id()
        request.peer, request.trusted = self._peer, self._trusted
        self._last = not request.keep_alive
        self._request = request
        if request.length is not None and request.length > settings.replay_bytes:
            if request.length > settings.max_body_bytes:
                raise too_large()
            request.held = False
            self._waiting.append(request)

    def on_body(self, data: bytes) -> None:
        """A piece of a body."""
        request, settings = self._request, self._relay.settings
        if request is None:
            return
        self._silent = 0
        self._received += len(data)
        if self._received > settings.max_body_bytes:
            raise too_large()
        if request.held:
            self._pieces.append(data)
            if self._received > settings.replay_bytes:
                request.held = False
                request.body = self._take_pieces()
                self._waiting.append(request)
        elif self._exchange is not None and self._exchange.request is request:
            self._exchange.upload(data)
        else:
            request.body += data

    def on_message_complete(self) -> None:
        """A request has ended."""
        request = self._request
        if request is None or (self._parser.should_upgrade() and request.length != 0):
            return
        self._request = None
        request.complete = True
        if request.held:
            request.body = self._take_pieces()
            self._waiting.append(request)
        elif self._exchange is not None and self._exchange.request is request:
            self._exchange.end_upload()

    def _take_pieces(self) -> bytes:
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return body

    # requests, one after another

    def _start_next(self) -> None:
        if self._starting:  # an exchange ended as it began
            return
        self._starting = True
        while self._exchange is None and self._waiting and not self._transport.is_closing():
            request = self._waiting.popleft()
            if isinstance(request, HttpError):
                answer = Answer.of_error(request)
                extra = b"x-request-id: %b\r\n" % self._relay.new_id()
                self._transport.write(render(answer, head_only=False, keep_alive=False, extra=extra))
                self._hang_up(linger=True)
                break
            if not self._waiting:
                self._ahead = 0
            self._upload_held = not request.complete
            exchange = self._exchange = exchange_for(self._relay, self, request)
            exchange.start()
            if self._serves(exchange):
                self._continue(request)
        self._starting = False
        if self._exchange is None and (partial := self._request) is not None and not self._deaf:
            self._continue(partial)
            self.deadline = self._loop.time() + self._relay.settings.body_timeout_s
        self._adjust_reading()

    def _serves(self, exchange: Exchange) -> bool:
        return self._exchange is exchange

    def _continue(self, request: RelayRequest) -> None:
        if request.expects_continue and not request.complete:
            request.expects_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse(self, error: HttpError) -> None:
        """Read no more; the error is the last answer."""
        self._deaf = True
        exchange = self._exchange
        if exchange is not None and exchange.request is self._request:
            self._gone()
            if exchange.status:
                self._transport.close()
                return
        if self._waiting and self._waiting[-1] is self._request:
            self._waiting.pop()
        self._in_head = False
        self._request = None
        self._waiting.append(error)
        self._start_next()

    def _hang_up(self, *, linger: bool) -> None:
        """Close once everything is written.

        With `linger` the client may still be sending, and would lose the response if its data met a closed
        socket: so what it sends is read, for a while.
        """
        self._deaf = True
        self._waiting.clear()
        self.deadline = self._loop.time() + (_LINGER_S if linger else self._relay.settings.client_stall_s)
        if linger and self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
            self._upload_held = False
            self._adjust_reading()
        else:
            self._transport.close()

    def _gone(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.on_client_gone()

    def _adjust_reading(self) -> None:
        held = self._upload_held or (self._exchange is not None and self._ahead > _AHEAD_BYTES)
        if held is self._reading and not self._transport.is_closing():
            self._reading = not held
            self._transport.resume_reading() if self._reading else self._transport.pause_reading()
