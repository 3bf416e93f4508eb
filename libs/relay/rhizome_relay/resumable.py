"""Event streams that outlive their backend, and that begin before there is one.

    first backend:   head  e0 e1 e2 ✗
    second backend:                    (asked for the rest)  head  e3 e4 end
    the client:      head  e0 e1 e2                                e3 e4 end

How the rest is asked for is the `Continuation`'s business. While a picker queues the request for long, the
client gets the head and comments, so that nobody on the way takes the silence for an end; what goes wrong
after that is an event, as the status is already out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Iterable

import orjson

from rhizome_relay import errors
from rhizome_relay.client import Client
from rhizome_relay.errors import HttpError
from rhizome_relay.exchange import Exchange
from rhizome_relay.framing import CHUNKED
from rhizome_relay.picker import Continuation, Ending, Target
from rhizome_relay.relay import Relay
from rhizome_relay.request import Pairs, RelayRequest
from rhizome_relay.response import ResponseWriter, is_event_stream

_EVENT_STREAM: Pairs = [(b"content-type", b"text/event-stream; charset=utf-8")]
_MOST_ERROR_BYTES = 16 << 10
_RETRY_S = 0.05


class ResumableExchange(Exchange):
    """A request for a stream of events on its way; see `Exchange`."""

    __slots__ = ("_continuation", "_error", "_following", "_losses", "_opened", "_wait_until")

    def __init__(
        self, relay: Relay, client: Client, request: RelayRequest, continuation: Continuation
    ) -> None:
        super().__init__(relay, client, request)
        self._continuation = continuation
        self._following = False  # the client gets events of a backend, and the continuation sees them
        self._losses = 0
        self._wait_until = 0.0
        self._opened = False  # the client has a head that is ours
        self._error: bytearray | None = None  # a refusal that has to become an event

    # a queue

    async def _queue(self, picking: Awaitable[Iterable[Target]]) -> None:
        waiting = asyncio.ensure_future(picking)
        try:
            while not (await asyncio.wait((waiting,), timeout=self._relay.settings.comment_s))[0]:
                self._comment()
            targets = waiting.result()
        finally:
            waiting.cancel()
        self._picked(targets)

    def _comment(self) -> None:
        if self._writer is None:
            if self.request.version != "1.1":
                return
            self._opened = True
            own = b"x-request-id: %b\r\n" % self.request.id
            self._writer = ResponseWriter(
                self.request, 200, _EVENT_STREAM, CHUNKED, own=own, via=self._relay.settings.via,
                last=self._relay.draining,
            )  # fmt: skip
        self._client.write(self._writer.encode([b": waiting for a backend\n\n"], [], False))

    # a response, or the rest of one

    def _body(self, target: Target) -> bytes:
        return self._continuation.body(target) if self._following else super()._body(target)

    def _forget(self) -> None:
        if self._continuation.possible:
            self.request.forget_document()
        else:
            super()._forget()

    def on_response(self, status: int, headers: Pairs, length: int) -> bool:
        """See `Exchange`; a head that the client already has is only checked."""
        stream = status == 200 and is_event_stream(headers)
        if self._following:
            if not stream:
                self._drop_upstream()
                self._release(Ending.REFUSED, status)
                self._go_on()
                return False
        elif not self._opened:
            wanted = super().on_response(status, headers, length)
            self._following = wanted and stream
            return wanted
        elif self._goes_elsewhere(status, headers):
            return False
        self.status = status
        if self._lease is not None:
            self._lease.first_byte()
        if self._client.write_paused:
            self.on_client_slow()
        self._following = stream
        self._error = None if stream else bytearray()
        return True

    def on_data(self, parts: list[bytes], trailers: Pairs, ended: bool) -> None:
        """See `Exchange`."""
        if self._error is not None:
            self._error += b"".join(parts)[:_MOST_ERROR_BYTES]
            if ended:
                self._tell_error(bytes(self._error))
        elif self._following:
            data = self._continuation.take(b"".join(parts), ended)
            super().on_data([data] if data else [], trailers, ended)
        else:
            super().on_data(parts, trailers, ended)

    def _tell_error(self, body: bytes) -> None:
        """Say in an event what the backend said with a status."""
        document = None
        with contextlib.suppress(orjson.JSONDecodeError):
            document = orjson.loads(body)
        if not (isinstance(document, dict) and "error" in document):
            body = errors.LOST.body()
        super().on_data([b"data: %b\n\ndata: [DONE]\n\n" % body.replace(b"\n", b" ")], [], True)

    def _fail(self, error: HttpError) -> None:
        if self._opened and not self._following and self._writer is not None:
            self._client.write(
                self._writer.encode([b"data: %b\n\ndata: [DONE]\n\n" % error.body()], [], True)
            )
            self._end(self._writer.keep_alive)
        else:
            super()._fail(error)

    # a backend that is lost

    def on_failure(self, ending: Ending, reason: str) -> None:
        """See `Exchange`."""
        if not self._following or ending is Ending.TRUNCATED:
            super().on_failure(ending, reason)
            return
        self._upstream = None
        self._release(ending)
        self._go_on()

    def _broken(self) -> None:
        if not self._following:
            super()._broken()
            return
        rest = self._continuation.end()
        if rest is not None:
            super().on_data([rest] if rest else [], [], True)
            return
        settings = self._relay.settings
        self._losses += 1
        if not self._continuation.possible or self._losses > settings.max_resumes:
            super()._broken()
            return
        self._wait_until = self._loop.time() + settings.resume_wait_s
        self._go_on()

    def _try_next(self, error: HttpError) -> None:
        if self._following:
            self._go_on()
        else:
            super()._try_next(error)

    def _go_on(self) -> None:
        """Let another backend go on, or wait for one."""
        if self._over or self._lease is not None:
            return
        try:
            target = self._continuation.next_target()
        except Exception as error:
            self._crash(error)
            return
        now = self._loop.time()
        if now > self._wait_until:
            super()._broken()
        elif target is None:
            self._client.deadline = self._total_at
            self._loop.call_later(_RETRY_S, self._go_on)
        else:
            self._attempt(target)


def exchange_for(relay: Relay, client: Client, request: RelayRequest) -> Exchange:
    """What takes a request to its backends."""
    if relay.local(request.path) is None:
        continuation = relay.picker.continuation(request)
        if continuation is not None:
            return ResumableExchange(relay, client, request, continuation)
    return Exchange(relay, client, request)
