"""One request on a route that is served without a framework, and its response."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import cast

from starlette.types import Receive, Scope, Send

from rhizome_gateway.auth.guard import Permit
from rhizome_gateway.errors import ApiError, internal_error
from rhizome_gateway.http.body import read_json_body
from rhizome_gateway.http.boundary import request_id_of
from rhizome_gateway.http.connection import SCOPE_KEY, ClientConnection
from rhizome_telemetry.asgi import SCOPE_KEY as SPAN_KEY
from rhizome_telemetry.logs import about
from rhizome_telemetry.tracing import Span
from rhizome_transport.errors import EngineError

_log = logging.getLogger(__name__)

ErrorBody = Callable[[ApiError, str], bytes]
"""Writes an error as an API wants it, given the request's id."""


class Exchange:
    """A request and how to answer it.

    Args:
        scope: ASGI's.
        receive: ASGI's.
        send: ASGI's.
        error_body: the API's envelope.

    Attributes:
        connection: the client's connection.
        request_id: names the request in logs and headers.
        permit: of the caller, who was admitted.
        started: the status line was sent.
        headers: sent with whatever the answer is.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, error_body: ErrorBody) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._error_body = error_body
        self.connection = cast(ClientConnection, scope[SCOPE_KEY])
        self.request_id = request_id_of(scope)
        self.permit: Permit | None = None
        self.started = False
        self.headers: dict[str, str] = {}

    @property
    def log_ids(self) -> dict[str, str]:
        """What log lines about the request say of it, in whichever task they are written."""
        span = self.scope.get(SPAN_KEY)
        return about(span.trace_parent if isinstance(span, Span) else None, self.request_id)

    async def read_json(self, *, max_bytes: int, timeout_s: float) -> bytes:
        """The body of a JSON request; see `body.read_json_body`."""
        return await read_json_body(
            self.scope,
            self._receive,
            max_bytes=max_bytes,
            timeout_s=timeout_s,
            arrived=self.connection.request_complete,
        )

    async def see_departure(self) -> None:
        """The client is gone: take ASGI's word for it, for the sake of whoever listens on the way."""
        await self._receive()

    async def start(
        self, status: int, headers: Mapping[str, str], body: bytes = b"", *, last: bool = False
    ) -> None:
        """Send the status line, the headers and the first bytes, which may be the last as well."""
        self.started = True
        raw = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in {**headers, **self.headers, **self._limit_headers}.items()
        ]
        head = {"type": "http.response.start", "status": status, "headers": raw}
        if not (body or last):
            await self._send(head)
            return
        self.connection.cork()
        try:
            await self._send(head)
            await self._send({"type": "http.response.body", "body": body, "more_body": not last})
        finally:
            self.connection.uncork()

    @property
    def _limit_headers(self) -> Mapping[str, str]:
        return self.permit.headers if self.permit is not None else {}

    async def end(self, body: bytes = b"") -> None:
        """Send the last bytes."""
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def send_json(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole JSON response."""
        described = {"content-type": "application/json", "content-length": str(len(body))}
        await self.start(status, described | dict(headers or {}), body, last=True)

    async def fail(self, error: ApiError) -> None:
        """Send an error, where nothing was sent yet."""
        await self.send_json(error.status, self._error_body(error, self.request_id), error.headers)

    def failure(self, error: Exception) -> ApiError:
        """What to tell the client about an exception; what it should not read is logged."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, EngineError):
            failure = ApiError.from_engine(error)
            if failure.status >= 500:
                _log.warning("the engine failed: %s", error.message, extra=self.log_ids)
            return failure
        _log.error("the request failed", exc_info=error, extra=self.log_ids)
        return internal_error(self.request_id)
