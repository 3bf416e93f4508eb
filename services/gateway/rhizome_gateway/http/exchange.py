"""A response that is made while it is sent, and no longer made when the client goes away."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rhizome_gateway.errors import ApiError, internal_error
from rhizome_gateway.http.boundary import request_id_of
from rhizome_transport.errors import EngineError

_log = logging.getLogger(__name__)


class Exchange(Response):
    """Runs `respond` beside a watch for the client's departure; whichever ends first ends the other.

    An error before the first byte becomes an HTTP error, one after it becomes whatever `broken_off` says.

    Args:
        keep_alive_s: silence after which `keep_alive` is sent, once the response was started.
        keep_alive: what to send then; nothing when empty.
    """

    keep_alive = b""

    def __init__(self, keep_alive_s: float = 15.0) -> None:
        super().__init__()
        self._keep_alive_s = keep_alive_s
        self._scope: Scope = {}
        self._last_sent = 0.0
        self.started = False
        self._finished = False

    @abstractmethod
    async def respond(self) -> None:
        """Make and send the response with `start`, `write` and `end`."""

    def broken_off(self, error: ApiError) -> bytes:
        """The last bytes of a response that failed after it was started."""
        return b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        self._scope, self._send = scope, send
        work = asyncio.ensure_future(self._respond_or_fail())
        gone = asyncio.ensure_future(self._watch(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if self._finished:  # the server reports the end of the response as a departure, too
                await work
        finally:
            for task in (work, gone):
                task.cancel()
            for task in (work, gone):
                with suppress(asyncio.CancelledError, OSError):
                    await task

    async def start(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        """Send the status line, the headers and the first bytes."""
        self.started = True
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
        if body:
            await self.write(body)

    async def write(self, body: bytes) -> None:
        """Send more bytes; waits while the client reads slowly."""
        self._last_sent = time.monotonic()
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes = b"") -> None:
        """Send the last bytes."""
        self._finished = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def send_json(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole JSON response."""
        described = {"content-type": "application/json", "content-length": str(len(body))}
        await self.start(status, described | dict(headers or {}))
        await self.end(body)

    async def _respond_or_fail(self) -> None:
        try:
            await self.respond()
        except OSError:  # the client went away while something was sent
            return
        except Exception as error:
            failure = self._failure(error)
            if self._finished:
                return
            if self.started:
                await self.end(self.broken_off(failure))
            else:
                await self.send_json(failure.status, failure.body(), failure.headers)

    def _failure(self, error: Exception) -> ApiError:
        if isinstance(error, ApiError):
            return error
        request_id = request_id_of(self._scope)
        if isinstance(error, EngineError):
            failure = ApiError.from_engine(error)
            if failure.status >= 500:
                _log.warning("request %s: %s", request_id, error.message)
            return failure
        _log.exception("request %s failed", request_id)
        return internal_error(request_id)

    async def _watch(self, receive: Receive) -> None:
        """Return when the client is gone; meanwhile keep the connection alive."""
        while True:
            idle_s = time.monotonic() - self._last_sent if self.started else 0.0
            if idle_s >= self._keep_alive_s and self.started and not self._finished and self.keep_alive:
                await self.write(self.keep_alive)
                continue
            try:
                async with asyncio.timeout(self._keep_alive_s - min(idle_s, self._keep_alive_s / 2)):
                    message = await receive()
            except TimeoutError:
                continue
            if message["type"] == "http.disconnect":
                return
