"""One request and its response: from the picker's list to the last byte.

Another backend may get the request while the client has not had a byte of the response. All steps are
callbacks of the two connections; a task exists only while a picker queues or a connection is being opened.
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import time
from collections.abc import Awaitable, Coroutine, Iterable, Iterator
from typing import Any, Protocol

from rhizome_proxy.http.answer import Answer, Handler, render, status_line
from rhizome_proxy.http.errors import HttpError, retry_after, unavailable
from rhizome_proxy.http.framing import CHUNKED, UNTIL_CLOSE
from rhizome_proxy.http.headers import (
    in_a_loop,
    request_head,
    response_headers,
    trailer_lines,
    wants_trailers,
)
from rhizome_proxy.http.picker import Ending, Lease, Outcome, Target
from rhizome_proxy.http.pool import OriginPool
from rhizome_proxy.http.relay import Relay
from rhizome_proxy.http.request import Pairs, RelayRequest
from rhizome_proxy.http.upstream import Upstream

_log = logging.getLogger(__name__)

_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_CUT = HttpError(502, "stream_interrupted", "The backend was lost before the response was complete.")


class Client(Protocol):
    """The client's connection.

    Attributes:
        deadline: when `Exchange.expire` is called, in the loop's time.
        write_paused: whether the client reads too slowly.
    """

    deadline: float
    write_paused: bool

    def write(self, data: bytes) -> None:
        """Send to the client."""
        ...

    def hold_upload(self, held: bool) -> None:
        """Stop reading the request's body, or go on."""
        ...

    def done(self, keep_alive: bool) -> None:
        """The response is complete."""
        ...

    def break_off(self, *, reset: bool) -> None:
        """End the connection in the middle of a response.

        Args:
            reset: whether an orderly end would look like the end of the response.
        """
        ...


class Exchange:
    """A request on its way.

    Attributes:
        request: what the client wants.
        status: of the response; 0 before there is one.
        attempts: backends that were tried.
        queue_s: how long the picker took.
        connect_s: how long opening connections took.
        first_byte_s: from sending the request to the response's head.
    """

    __slots__ = (
        "_began", "_chunked", "_client", "_head", "_keep_alive", "_lease", "_loop", "_over", "_pool", "_refusal",
        "_relay", "_retries", "_retry_after_s", "_sent_at", "_sse", "_tail", "_target", "_targets", "_task",
        "_total_at", "_trailing", "_until_close", "_upstream", "attempts", "connect_s", "first_byte_s", "queue_s",
        "request", "status",
    )  # fmt: skip

    def __init__(self, relay: Relay, client: Client, request: RelayRequest) -> None:
        self.request = request
        self.status = self.attempts = 0
        self.queue_s = self.connect_s = self.first_byte_s = 0.0
        self._relay = relay
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._began = time.perf_counter()
        self._total_at = self._loop.time() + relay.settings.total_timeout_s
        self._task: asyncio.Task[None] | None = None
        self._targets: Iterator[Target] = iter(())
        self._lease: Lease | None = None
        self._upstream: Upstream | None = None
        self._refusal: HttpError | None = None
        self._retries = 0
        self._retry_after_s = self._sent_at = 0.0
        self._head = self._tail = b""
        self._chunked = self._sse = self._trailing = self._over = self._keep_alive = False
        self._until_close = False

    def start(self) -> None:
        """Begin; the client hears from it in any case."""
        self._client.deadline = self._total_at
        try:
            self._choose()
        except Exception as error:
            self._crash(error)

    # choosing and trying targets

    def _choose(self) -> None:
        relay, request = self._relay, self.request
        if (handler := relay.local(request.path)) is not None:
            self._run(self._answer_locally(handler))
            return
        if not relay.settings.allows(request.path):
            raise HttpError(404, "unknown_path", "There is nothing here for clients at this path.")
        if in_a_loop(request.headers, relay.settings.via):
            raise HttpError(
                508, "loop_detected", "The request has passed this proxy before; check its backends."
            )
        relay.budget.on_request()
        picked = relay.picker.pick(request)
        if isinstance(picked, Awaitable):
            self._run(self._queue(picked))
        else:
            self._picked(picked)

    async def _answer_locally(self, handler: Handler) -> None:
        self._answer(await handler(self.request))

    async def _queue(self, picking: Awaitable[Iterable[Target]]) -> None:
        self._picked(await picking)

    def _picked(self, targets: Iterable[Target]) -> None:
        self.queue_s = time.perf_counter() - self._began
        self._targets = iter(targets)
        self._try_next(unavailable("No backend is ready for this request. Try again in a moment."))

    def _try_next(self, error: HttpError) -> None:
        """Try another target; `error` is for the client when there is none."""
        target = self._next_target()
        if target is None:
            self._answer(Answer.of_error(self._refusal or error))
        else:
            self._attempt(target)

    def _next_target(self) -> Target | None:
        try:
            return next(self._targets, None)
        except HttpError as error:
            self._refusal = error
        except Exception:
            _log.exception("%s: the picker failed", self.request.id.decode())
        return None

    def _attempt(self, target: Target) -> None:
        self._target = target
        self.attempts += 1
        self._retry_after_s = self.first_byte_s = 0.0
        try:
            self._lease = target.lease()
            self._pool = self._relay.pools.of(target.origin)
            # What is passed on as it arrives could not be sent again if an old connection were dead.
            upstream = self._pool.take() if self.request.held else None
            if upstream is None:
                self._run(self._connect(self._pool))
            else:
                self._send(upstream)
        except Exception as error:
            self._crash(error)

    async def _connect(self, pool: OriginPool) -> None:
        began = time.perf_counter()
        try:
            upstream = await pool.connect()
        except OSError:
            self._release(Ending.UNREACHABLE)
            self._try_next(unavailable("No backend could be reached. Try again in a moment."))
        else:
            self.connect_s += time.perf_counter() - began
            self._send(upstream)

    def _send(self, upstream: Upstream) -> None:
        request, settings = self.request, self._relay.settings
        self._upstream = upstream
        upstream.begin(self, request.method == b"HEAD")
        self._sent_at = time.perf_counter()
        if request.held:
            body = self._target.body(request) if request.body else b""
            head = request_head(request, self._target, settings, len(body))
            upstream.write(head, body) if body else upstream.write(head)
        else:
            upstream.write(request_head(request, self._target, settings, request.length))
            self.upload(request.body)
            request.body = b""
            if request.complete:
                self.end_upload()
            self._client.hold_upload(upstream.write_paused)
        self._expect(settings.first_byte_timeout_s if request.complete else settings.body_timeout_s)

    def _another(self) -> Target | None:
        """A target for a retry, if there is one, the request can be sent again and the budget allows it."""
        if not self.request.held or self._retries + 1 >= self._relay.settings.max_attempts:
            return None
        target = self._next_target()
        if target is None or not self._relay.budget.take():
            return None
        self._retries += 1
        return target

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
        if self.request.version == "1.1":
            lines = response_headers(headers, self._relay.settings.via)
            self._client.write(b"%b%b\r\n" % (status_line(103), b"".join(lines)))

    def on_response(self, status: int, headers: Pairs, length: int) -> bool:
        """Pass the head on, unless another backend may do better."""
        settings, request = self._relay.settings, self.request
        self.first_byte_s = time.perf_counter() - self._sent_at
        self.status = status
        if status in settings.retry_statuses:
            self._retry_after_s = _retry_after_s(headers)
            if (target := self._another()) is not None:
                self._refusal = _refusal(status, self._retry_after_s)
                self._drop_upstream()
                self._release(Ending.REFUSED, status)
                self.status = 0
                self._attempt(target)
                return False
        if self._lease is not None:
            self._lease.first_byte()
        self._keep_alive = request.keep_alive and request.complete and not self._relay.draining
        self._head = self._render_head(status, headers, length)
        if request.complete:
            request.forget()
        if self._client.write_paused:
            self.on_client_slow()
        return True

    def _render_head(self, status: int, headers: Pairs, length: int) -> bytes:
        request, settings = self.request, self._relay.settings
        lines = [status_line(status), *response_headers(headers, settings.via)]
        declared = [value for name, value in headers if name == b"content-length"]
        if request.method == b"HEAD" or status == 304:
            lines.extend([b"content-length: %b\r\n" % value for value in declared])
        elif status != 204:
            if length >= 0:
                lines.append(b"content-length: %d\r\n" % length)
            elif request.version == "1.1":
                self._chunked = True
                self._trailing = length == CHUNKED and wants_trailers(request)
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                self._until_close = True
                self._keep_alive = False
            self._sse = length < 0 and any(
                name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers
            )
            if self._sse:
                given = {name for name, _ in headers}
                if b"cache-control" not in given:
                    lines.append(b"cache-control: no-cache\r\n")
                if b"x-accel-buffering" not in given:
                    lines.append(b"x-accel-buffering: no\r\n")
        lines.append(self._own_lines())
        lines.append(
            b"server-timing: queue;dur=%.1f, connect;dur=%.1f, ttfb;dur=%.1f\r\n"
            % (self.queue_s * 1e3, self.connect_s * 1e3, self.first_byte_s * 1e3)
        )
        lines.append(b"\r\n" if self._keep_alive else b"connection: close\r\n\r\n")
        return b"".join(lines)

    def _own_lines(self) -> bytes:
        lines = b"x-request-id: %b\r\n" % self.request.id
        if self.attempts:
            name = self._target.name.encode()
            lines += b"x-rhizome-backend: %b\r\nx-rhizome-attempts: %d\r\n" % (name, self.attempts)
        return lines

    def on_data(self, parts: list[bytes], trailers: Pairs, ended: bool) -> None:
        """Pass a piece on."""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        if self._sse and data:
            self._tail = data[-4:] if len(data) > 3 else (self._tail + data)[-4:]
        if self._chunked:
            if data:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            if ended:
                data += b"0\r\n%b\r\n" % (trailer_lines(trailers) if self._trailing else b"")
        if self._head:
            data = self._head + data
            self._head = b""
        if data:
            self._client.write(data)
        if ended:
            self._finish()
        elif not self._client.write_paused:
            self._expect(self._relay.settings.idle_timeout_s)

    def on_failure(self, ending: Ending, reason: str) -> None:
        """The backend will not answer, or not in full."""
        upstream, self._upstream = self._upstream, None
        request = self.request
        if ending is Ending.TRUNCATED:
            _log.warning("%s: %s cut a response short: %s", request.id.decode(), self._target.name, reason)
            self._release(ending, self.status)
            self._break_off()
        elif upstream is not None and upstream.reused and not upstream.answered and request.held:
            # The backend closed an idle connection just as the request went out: that is no fault.
            self._client.deadline = self._total_at
            self._run(self._connect(self._pool))
        else:
            _log.warning("%s: %s did not answer: %s", request.id.decode(), self._target.name, reason)
            self._release(ending)
            if (target := self._another()) is not None:
                self._client.deadline = self._total_at
                self._attempt(target)
            else:
                error = HttpError(502, "backend_lost", "The backend was lost before it answered. Try again.")
                self._answer(Answer.of_error(self._refusal or error))

    def _finish(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            if self.request.complete:
                self._pool.put(upstream, self._loop.time())
            else:
                upstream.abort()
        refused = self.status in self._relay.settings.retry_statuses
        self._release(Ending.REFUSED if refused else Ending.COMPLETE, self.status)
        self._end(self._keep_alive)

    # the client

    def on_client_slow(self) -> None:
        """What the client does not read must not pile up here."""
        if self._upstream is not None and self.status:
            self._upstream.pause_reading()
            self._expect(self._relay.settings.client_stall_s)

    def on_client_ready(self) -> None:
        """The client has caught up."""
        if self._upstream is not None and self.status:
            self._upstream.resume_reading()
            self._expect(self._relay.settings.idle_timeout_s)

    def on_client_gone(self) -> None:
        """Nobody waits any more: the backend must know at once."""
        if not self._over:
            self._over = True
            self._cancel(Ending.CANCELLED)

    def expire(self) -> None:
        """The deadline has passed."""
        if self._over:
            return
        if self.status and self._client.write_paused:
            self._client.break_off(reset=True)
            self.on_client_gone()
        elif not self.request.complete:
            self._cancel(Ending.CANCELLED)
            error = HttpError(408, "request_timeout", "The rest of the request did not arrive in time.")
            self._break_off() if self.status else self._answer(Answer.of_error(error))
        else:
            self._cancel(Ending.TIMED_OUT if self._upstream is not None else Ending.CANCELLED)
            error = HttpError(504, "backend_timeout", "The backend did not answer in time. Try again later.")
            self._break_off() if self.status else self._answer(Answer.of_error(error))

    # ends

    def _answer(self, answer: Answer) -> None:
        """The proxy's own response."""
        if self._over:
            return
        self.status = answer.status
        keep_alive = self.request.keep_alive and self.request.complete and not self._relay.draining
        head_only = self.request.method == b"HEAD"
        self._client.write(
            render(answer, head_only=head_only, keep_alive=keep_alive, extra=self._own_lines())
        )
        self._end(keep_alive)

    def _break_off(self) -> None:
        """Make the client see that the response is cut short."""
        event = b""
        if self._sse and self._tail.endswith(_EVENT_ENDS):
            event = b"data: %b\n\n" % _CUT.body()
            self._client.write(b"%x\r\n%b\r\n" % (len(event), event) if self._chunked else event)
        self._over = True
        self._client.break_off(reset=self._until_close and not event)

    def _end(self, keep_alive: bool) -> None:
        self._over = True
        self._client.done(keep_alive)

    def _cancel(self, ending: Ending) -> None:
        if self._task is not None:
            self._task.cancel()
        self._drop_upstream()
        self._release(ending, self.status)

    def _drop_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()

    def _release(self, ending: Ending, status: int = 0) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release(Outcome(ending, status, self._retry_after_s, self.first_byte_s))

    def _expect(self, within_s: float) -> None:
        self._client.deadline = min(self._loop.time() + within_s, self._total_at)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = self._loop.create_task(work)
        self._task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        if task is self._task:
            self._task = None
        if task.cancelled():
            if not self._over:  # not by us
                self._crash(unavailable("The request was given up before a backend had it. Try again."))
        elif (error := task.exception()) is not None:
            self._crash(error)

    def _crash(self, error: BaseException) -> None:
        """A picker or handler refused the request, or there is a bug."""
        self._cancel(Ending.CANCELLED)
        if not isinstance(error, HttpError):
            _log.error("%s: the request failed here", self.request.id.decode(), exc_info=error)
            error = HttpError(
                500, "internal_error", "The proxy failed; its log names the cause under x-request-id."
            )
        self._break_off() if self.status else self._answer(Answer.of_error(error))


def _refusal(status: int, after_s: float) -> HttpError:
    """For the client, when every other backend fails too."""
    if status == 429:
        message = "The backends have too many requests. Try again later."
        return HttpError(429, "rate_limit_exceeded", message, headers=(retry_after(after_s),))
    return unavailable("The backends cannot take the request now. Try again later.", after_s)


def _retry_after_s(headers: Pairs) -> float:
    """What Retry-After says, in seconds from now; 0 when it says nothing that can be read."""
    for name, value in headers:
        if name == b"retry-after":
            text = value.strip()
            if text.isdigit():
                return float(text[:9])
            try:
                when = email.utils.parsedate_to_datetime(text.decode("latin-1"))
            except ValueError:
                continue
            return max(0.0, when.timestamp() - time.time())
    return 0.0
