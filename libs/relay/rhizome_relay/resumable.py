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
import time
from collections.abc import Awaitable, Iterable

import orjson

from rhizome_relay import errors
from rhizome_relay.client import Client
from rhizome_relay.errors import HttpError
from rhizome_relay.exchange import Exchange
from rhizome_relay.framing import CHUNKED
from rhizome_relay.headers import retry_after_s
from rhizome_relay.known_heads import KnownResponse
from rhizome_relay.picker import Continuation, Ending, Target
from rhizome_relay.relay import Relay
from rhizome_relay.request import Pairs, RelayRequest
from rhizome_relay.response import ResponseWriter, can_be_followed

_EVENT_STREAM: Pairs = [(b"content-type", b"text/event-stream; charset=utf-8")]
_MOST_ERROR_BYTES = 16 << 10
_RETRY_S = 0.05
_MAY_CHANGE = frozenset((408, 425, 429))


class ResumableExchange(Exchange):
    """A request for a stream of events on its way; see `Exchange`."""

    __slots__ = ("_continuation", "_error", "_following", "_interruptions", "_opened", "_wait_until")

    def __init__(
        self, relay: Relay, client: Client, request: RelayRequest, continuation: Continuation
    ) -> None:
        super().__init__(relay, client, request)
        self._continuation = continuation
        self._following = False  # the client gets events of a backend, and the continuation sees them
        self._interruptions = 0
        self._wait_until = 0.0
        self._opened = False  # the client has a head that is ours
        self._error: bytes | None = None  # a refusal that has to become an event

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

    @property
    def _heard(self) -> bool:
        return self._following or (self._writer is not None and not self._opened)

    # a response, or the rest of one

    def _body(self, target: Target) -> bytes:
        return self._continuation.body(target) if self._following else super()._body(target)

    def _forget(self) -> None:
        if self._continuation.possible:
            self._targets = iter(())
            self.request.fold()
        else:
            super()._forget()

    def on_response(
        self, status: int, headers: Pairs, length: int, known: KnownResponse | None = None
    ) -> bool:
        """See `Exchange`; a head that the client already has is only checked."""
        stream = can_be_followed(status, headers, length)
        if self._following:
            if not stream:
                self._refused(status, headers)
                return False
        elif not self._opened:
            wanted = super().on_response(status, headers, length, known)
            self._following = wanted and stream
            return wanted
        else:
            self.first_byte_s = time.perf_counter() - self._sent_at
            if self._goes_elsewhere(status, headers):
                return False
        self.status = status
        self._forget()
        self._following = stream
        self._error = None if stream else b""
        if self._client.write_paused:
            self.on_client_slow()
        return True

    def on_data(self, parts: list[bytes], trailers: Pairs, ended: bool) -> None:
        """See `Exchange`."""
        if self._error is not None:
            self._error = b"".join([self._error, *parts])[:_MOST_ERROR_BYTES]
            if ended:
                self._tell_error(self._error)
        elif self._following:
            data = self._continuation.take(parts[0] if len(parts) == 1 else b"".join(parts), ended)
            super().on_data([data] if data else [], trailers, ended)
        else:
            super().on_data(parts, trailers, ended)

    def on_chunk(self, piece: bytes, framed: bytes) -> None:
        """See `Exchange`."""
        if self._error is not None or not self._following:
            self.on_data([piece], [], False)
        elif (told := self._continuation.take(piece, False)) is piece:
            Exchange.on_chunk(self, piece, framed)
        else:
            super().on_data([told] if told else [], [], False)

    def _tell_error(self, body: bytes) -> None:
        """Say in an event what the backend said with a status."""
        document = None
        with contextlib.suppress(orjson.JSONDecodeError):
            document = orjson.loads(body)
        told = isinstance(document, dict) and "error" in document
        super().on_data([_last_event(orjson.dumps(document) if told else errors.LOST.body())], [], True)

    def _fail(self, error: HttpError) -> None:
        if not self._opened or self._following or self._writer is None:
            super()._fail(error)
        elif not self._over:
            self.status = error.status
            self._client.write(self._writer.encode([_last_event(error.body())], [], True))
            self._end(self._writer.keep_alive)

    # a backend that is lost

    def on_failure(self, ending: Ending, reason: str) -> None:
        """See `Exchange`."""
        if not self._following or ending is Ending.TRUNCATED or self._was_idle(self._upstream):
            super().on_failure(ending, reason)
        else:
            self._upstream = None
            self._release(ending)
            self._lost()

    def _unanswered(self, ending: Ending, reason: str) -> None:
        if self._following:
            self._release(ending)
            self._lost()
        else:
            super()._unanswered(ending, reason)

    def expire(self) -> None:
        """See `Exchange`; a backend that fell silent is one that is lost."""
        if self._heard_since():
            return
        silent = self._following and self._upstream is not None and not self._client.write_paused
        if silent and self._loop.time() < self._total_at:
            self._client.deadline = self._total_at
            self._cancel(Ending.TIMED_OUT)
            self._broken()
        else:
            super().expire()

    def _broken(self) -> None:
        self._interrupted(lost=True)

    def _left(self) -> None:
        self._interrupted(lost=False)

    def _interrupted(self, *, lost: bool) -> None:
        """A backend that sent events is gone."""
        if not self._following:
            super()._broken()
            return
        rest = self._continuation.end()
        if rest is not None:
            super().on_data([rest] if rest else [], [], True)
            return
        self._wait_until = self._loop.time() + self._relay.settings.resume_wait_s
        if lost:
            self._lost()
        else:
            self._resume()

    def _lost(self) -> None:
        """A backend was lost under the stream: too many of them are enough."""
        self._interruptions += 1
        if self._interruptions > self._relay.settings.max_resumes:
            super()._broken()
        else:
            self._resume()

    def _resume(self) -> None:
        if self._continuation.possible:
            self._go_on()
        else:
            super()._broken()

    def _refused(self, status: int, headers: Pairs) -> None:
        """A backend does not go on with the stream: another one may, or this one later."""
        self._drop_upstream()
        self._retry_after_s = retry_after_s(headers)
        self._release(Ending.REFUSED, status)
        if status in _MAY_CHANGE or status >= 500:
            self._wait()
        else:
            super()._broken()

    def _try_next(self, error: HttpError) -> None:
        if self._following:
            self._wait()
        else:
            super()._try_next(error)

    def _wait(self) -> None:
        """Look for another backend in a moment, if there still is time."""
        self._client.deadline = self._total_at
        if self._loop.time() < self._wait_until:
            self._loop.call_later(_RETRY_S, self._go_on)
        else:
            super()._broken()

    def _go_on(self) -> None:
        """Let another backend go on, or wait for one."""
        if self._over or self._lease is not None:
            return
        self.request.unfold()
        try:
            target = self._continuation.next_target()
        except Exception as error:
            self._crash(error)
            return
        if target is None:
            self._wait()
        else:
            self._attempt(target)


def _last_event(body: bytes) -> bytes:
    return b"data: %b\n\ndata: [DONE]\n\n" % body


def exchange_for(relay: Relay, client: Client, request: RelayRequest) -> Exchange:
    """What takes a request to its backends."""
    handler = relay.local(request.path)
    continuation = relay.picker.continuation(request) if handler is None else None
    if continuation is not None:
        return ResumableExchange(relay, client, request, continuation)
    return Exchange(relay, client, request, handler)
