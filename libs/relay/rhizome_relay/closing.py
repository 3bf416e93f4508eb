"""What an exchange holds, and how it ends: whole, refused, or visibly cut short.

Whatever happens, a lease is released once, a connection to a backend goes back or is closed, and the picker
hears once what became of the request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any

from rhizome_relay import errors
from rhizome_relay.answer import Answer, render
from rhizome_relay.client import Client
from rhizome_relay.errors import HttpError
from rhizome_relay.picker import Ending, Lease, Outcome, Result, Target
from rhizome_relay.relay import Relay
from rhizome_relay.request import RelayRequest
from rhizome_relay.response import ResponseWriter
from rhizome_relay.upstream import Upstream

_log = logging.getLogger(__name__)


class Closing:
    """The part of an exchange that lets go; `exchange.Exchange` is the other one.

    Attributes:
        request: what the client wants.
        status: of the response; 0 before there is one.
        attempts: backends that were tried.
        queue_s: how long the picker took.
        connect_s: how long opening connections took.
        first_byte_s: from sending the request to the response's head.
    """

    __slots__ = (
        "_answering", "_began", "_client", "_first_s", "_heard_at", "_lease", "_loop", "_over",
        "_picking", "_pieces", "_relay", "_retry_after_s", "_target", "_task", "_total_at", "_upstream",
        "_usage", "_verbatim", "_writer", "attempts", "connect_s", "first_byte_s", "queue_s", "request",
        "status",
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
        self._target: Target
        self._lease: Lease | None = None
        self._upstream: Upstream | None = None
        self._writer: ResponseWriter | None = None
        self._over = self._picking = self._answering = False
        self._verbatim = False  # an event like the last one goes to the client as it comes
        self._pieces = 0
        self._usage = b""
        self._retry_after_s = self._first_s = self._heard_at = 0.0

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

    def _fail(self, error: HttpError) -> None:
        """Tell the client, or, once it has a part of the response, make it see that the rest is missing."""
        if self._over:
            return
        if self._writer is None:
            self._answer(Answer.of_error(error))
            return
        data, reset = self._writer.cut()
        if data:
            self._client.write(data)
        self._close(whole=False)
        self._client.break_off(reset=reset)

    def _end(self, keep_alive: bool) -> None:
        self._close(whole=True)
        self._client.done(keep_alive)

    def _close(self, *, whole: bool) -> None:
        """The request is over, and the picker hears what became of it."""
        self._over = True
        if not self._picking:
            return
        now = time.perf_counter()
        name = self._target.name if self.attempts else ""
        result = Result(
            self.status,
            whole,
            name,
            self.attempts,
            self.queue_s,
            self._first_s,
            now - self._began,
            self._pieces,
            self._usage,
        )
        try:
            self._relay.picker.ended(self.request, result)
        except Exception:
            _log.exception("the picker failed", extra=self.request.log_ids)

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

    def _own_lines(self) -> bytes:
        if not self.attempts:
            return b"x-request-id: %b\r\n" % self.request.id
        return (
            b"x-request-id: %b\r\nx-rhizome-backend: %b\r\nx-rhizome-attempts: %d\r\n"
            b"server-timing: queue;dur=%.1f, connect;dur=%.1f, ttfb;dur=%.1f\r\n"
        ) % (
            *(self.request.id, self._target.name.encode(), self.attempts),
            *(self.queue_s * 1e3, self.connect_s * 1e3, self.first_byte_s * 1e3),
        )

    def _expect(self, within_s: float) -> float:
        """Wait for so long from now on; returns now."""
        now = self._loop.time()
        self._client.deadline = min(now + within_s, self._total_at)
        return now

    def _heard_since(self) -> bool:
        """Whether pieces came after the deadline was set, which is then a later one."""
        if not (self._answering and self.request.complete) or self._client.write_paused:
            return False
        later = min(self._heard_at + self._relay.settings.idle_timeout_s, self._total_at)
        if self._upstream is None or later <= self._loop.time():
            return False
        self._client.deadline = later
        return True

    def _is_idle(self) -> bool:
        """Whether the backend has said nothing for too long."""
        # As the deadline was reckoned: of two roundings one may be just before it.
        idle_at = self._heard_at + self._relay.settings.idle_timeout_s
        return self._upstream is not None and self._loop.time() >= idle_at

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = self._loop.create_task(work)
        self._task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        current = task is self._task
        if current:
            self._task = None
        if task.cancelled():
            if current and not self._over:  # not by us
                self._crash(errors.GIVEN_UP)
        elif (error := task.exception()) is not None:
            self._crash(error)

    def _crash(self, error: BaseException) -> None:
        """A picker or handler refused the request, or there is a bug."""
        self._cancel(Ending.CANCELLED)
        if not isinstance(error, HttpError):
            _log.error("the request failed here", exc_info=error, extra=self.request.log_ids)
            error = errors.BUG
        self._fail(error)
