"""One request and its response: from the picker's list to the last byte.

Another backend may get the request while the client has not had a byte of the response. All steps are
callbacks of the two connections; a task exists only while a picker queues or a connection is being opened.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Iterable
from typing import cast

from rhizome_relay import errors
from rhizome_relay.answer import Handler, status_line
from rhizome_relay.attempts import Attempts
from rhizome_relay.client import Client
from rhizome_relay.headers import in_a_loop, request_head, response_headers, retry_after_s
from rhizome_relay.known_heads import KnownResponse
from rhizome_relay.picker import Ending, Target
from rhizome_relay.relay import Relay
from rhizome_relay.request import Pairs, RelayRequest
from rhizome_relay.response import ResponseWriter
from rhizome_relay.upstream import Upstream

_log = logging.getLogger(__name__)

TOKENS = b'_tokens"'
"""In what tells how many tokens were used; within a text a quote is written otherwise."""

USAGE_BYTES = 2048
"""So much of its end is kept, where usage stands."""


class Exchange(Attempts):
    """A request on its way."""

    __slots__ = ("_handler",)

    def __init__(
        self, relay: Relay, client: Client, request: RelayRequest, handler: Handler | None = None
    ) -> None:
        super().__init__(relay, client, request)
        self._handler = handler  # of a path of our own

    def start(self) -> None:
        """Begin; the client hears from it in any case."""
        self._client.deadline = self._total_at
        try:
            self._choose()
        except Exception as error:
            self._crash(error)

    # choosing a target

    def _choose(self) -> None:
        relay, request = self._relay, self.request
        if self._handler is not None:
            self._run(self._answer_locally(self._handler))
            return
        if not relay.settings.allows(request.path):
            self._fail(errors.NO_PATH)
            return
        if b"via" in request.fields and in_a_loop(request.headers, relay.settings.via):
            self._fail(errors.LOOP)
            return
        relay.budget.on_request()
        self._picking = True
        picked = relay.picker.pick(request)
        if hasattr(picked, "__await__"):  # a tenth of what isinstance takes
            self._run(self._queue(cast(Awaitable[Iterable[Target]], picked)))
        else:
            self._picked(picked)

    async def _answer_locally(self, handler: Handler) -> None:
        self._answer(await handler(self.request))

    def _send(self, upstream: Upstream) -> None:
        request, settings = self.request, self._relay.settings
        self._upstream = upstream
        upstream.begin(self, request.method == b"HEAD")
        self._sent_at = time.perf_counter()
        if request.held:
            body = self._body(self._target) if request.body else b""
            head = request_head(request, self._target, settings, len(body))
            upstream.write(head, body)
        else:
            upstream.write(request_head(request, self._target, settings, request.length))
            self.upload(request.body)
            request.body = b""
            if request.complete:
                self.end_upload()
            self._client.hold_upload(upstream.write_paused)
        self._expect(settings.first_byte_timeout_s if request.complete else settings.body_timeout_s)

    # the request's body, where it is not held

    def upload(self, data: bytes) -> None:
        """A piece of the body has arrived."""
        if (upstream := self._upstream) is None:
            self.request.body += data
            return
        if data:
            upstream.write(b"%x\r\n%b\r\n" % (len(data), data) if self.request.length is None else data)
        self._expect(self._relay.settings.body_timeout_s)
        if upstream.write_paused:
            self._client.hold_upload(True)

    def end_upload(self) -> None:
        """The body is complete."""
        if self._upstream is not None:
            if self.request.length is None:
                self._upstream.write(b"0\r\n\r\n")
            self._expect(self._relay.settings.first_byte_timeout_s)

    def on_backend_ready(self) -> None:
        """The backend has read what waited for it."""
        self._client.hold_upload(False)

    # the response

    def on_early_hints(self, headers: Pairs) -> None:
        """Pass a 103 on."""
        if self.request.version == "1.1" and self._writer is None:
            lines = response_headers(headers, self._relay.settings.via)
            self._client.write(b"%b%b\r\n" % (status_line(103), b"".join(lines)))

    def on_response(
        self, status: int, headers: Pairs, length: int, known: KnownResponse | None = None
    ) -> bool:
        """Pass the head on, unless another backend may do better."""
        settings, request = self._relay.settings, self.request
        self.first_byte_s = time.perf_counter() - self._sent_at
        self.status = status
        if self._goes_elsewhere(status, headers):
            return False
        last = self._relay.draining or not request.complete
        own, via = self._own_lines(), settings.via
        self._writer = ResponseWriter(
            request, status, headers, length, own=own, via=via, last=last, known=known
        )
        if request.complete:
            self._forget()
        if self._client.write_paused:
            self.on_client_slow()
        return True

    def _goes_elsewhere(self, status: int, headers: Pairs) -> bool:
        """Whether another backend is tried, as this one has refused the request."""
        if status not in self._relay.settings.retry_statuses:
            return False
        self._retry_after_s = retry_after_s(headers)
        if (target := self._another()) is None:
            return False
        self._refusal = errors.refusal(status, self._retry_after_s)
        self._drop_upstream()
        self._release(Ending.REFUSED, status)
        self.status = 0
        self._attempt(target)
        return True

    def _body(self, target: Target) -> bytes:
        return target.body(self.request)

    def _forget(self) -> None:
        self.request.forget()

    def on_data(self, parts: list[bytes], trailers: Pairs, ended: bool) -> None:
        """Pass pieces on."""
        if self._writer is None:
            return
        self._verbatim = False
        self._pieces += len(parts)
        for piece in parts:
            if TOKENS in piece:
                self._usage = piece[-USAGE_BYTES:]
        if not self._answering and (parts or ended):
            self._answers()
        data = self._writer.encode(parts, trailers, ended)
        if data:
            self._client.write(data)
        if ended:
            self._finish()
        elif not self._client.write_paused:
            self._heard_at = self._expect(self._relay.settings.idle_timeout_s)

    def on_chunk(self, piece: bytes, framed: bytes) -> None:
        """Pass a piece on as it came, once the answer has begun.

        This runs for every event of a stream. So the writer is left alone while events are alike, and the
        deadline does not follow each of them: `expire` does that.
        """
        alike = self._verbatim and piece.endswith(b"\n\n")
        writer, client = self._writer, self._client
        if not alike:
            if writer is None or not self._answering or not writer.begun:
                Exchange.on_data(self, [piece], [], False)
                return
            framed = writer.encode_chunk(piece, framed)
        self._pieces += 1
        if TOKENS in piece:
            self._usage = piece[-USAGE_BYTES:]
        client.write(framed)
        if alike:
            self._heard_at = self._loop.time()
        elif not client.write_paused:
            self._heard_at = self._expect(self._relay.settings.idle_timeout_s)
            self._verbatim = writer is not None and writer.verbatim and self.request.complete

    def _answers(self) -> None:
        """The body begins. A head says little: some servers send it before a request's turn has come."""
        self._answering = True
        self._first_s = self._first_s or time.perf_counter() - self._began
        if self._lease is not None and self.status < 500:
            self._lease.first_byte()

    def on_failure(self, ending: Ending, reason: str) -> None:
        """The backend will not answer, or not in full."""
        upstream, self._upstream = self._upstream, None
        request = self.request
        if ending is Ending.TRUNCATED:
            name, ids = self._target.name, request.log_ids
            _log.warning("%s cut a response short: %s", name, reason, extra=ids)
            self._release(ending, self.status)
            self._broken()
        elif self._was_idle(upstream):
            # The backend closed an idle connection just as the request went out: that is no fault.
            self._client.deadline = self._total_at
            self._run(self._connect(self._pool, again=True))
        else:
            self._unanswered(ending, reason)

    def _finish(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            if self.request.complete:
                self._pool.put(upstream, self._loop.time())
            else:
                upstream.abort()
        refused = self.status in self._relay.settings.retry_statuses
        self._release(Ending.REFUSED if refused else Ending.COMPLETE, self.status)
        self._end(self._writer is not None and self._writer.keep_alive)

    # the client

    def on_client_slow(self) -> None:
        """What the client does not read must not pile up here."""
        if self._upstream is not None and self._writer is not None:
            self._upstream.pause_reading()
            self._expect(self._relay.settings.client_stall_s)

    def on_client_ready(self) -> None:
        """The client has caught up."""
        if self._upstream is not None and self._writer is not None:
            self._upstream.resume_reading()
            self._expect(self._relay.settings.idle_timeout_s)

    def on_client_gone(self) -> None:
        """Nobody waits any more: the backend must know at once."""
        if not self._over:
            self._cancel(Ending.CANCELLED)
            self._close(whole=False)

    def cut(self) -> None:
        """Leave the backend, which is to go away: to another one as long as the client has heard nothing."""
        if self._over or self._lease is None:
            return
        self._drop_upstream()
        self._release(Ending.CANCELLED, self.status)
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        if self._heard or not self.request.held:
            self._left()
        else:
            self._client.deadline = self._total_at
            self._try_next(errors.NONE_READY)

    def heard_at(self) -> float:
        """When the backend last sent a piece of the answer, in the loop's time; 0 for never."""
        return self._heard_at

    @property
    def _heard(self) -> bool:
        """Whether the client has a part of a backend's response."""
        return self._writer is not None

    def _left(self) -> None:
        """The same as `_broken`, but it is no fault of the backend."""
        self._broken()

    def _broken(self) -> None:
        """The backend is gone, and the client has a part of the response, or it has a part of the request."""
        self._fail(errors.LOST)

    def expire(self) -> None:
        """The deadline has passed."""
        if self._over or self._heard_since():
            return
        if self._writer is not None and self._client.write_paused:
            self._client.break_off(reset=True)
            self.on_client_gone()
        elif not self.request.complete:
            self._cancel(Ending.CANCELLED)
            self._fail(errors.SLOW_BODY)
        else:
            # A long answer that runs into the total time-out is no fault of the backend.
            silent = self._upstream is not None and not self._answering
            self._cancel(Ending.TIMED_OUT if silent or self._is_idle() else Ending.CANCELLED)
            self._fail(errors.LATE)
