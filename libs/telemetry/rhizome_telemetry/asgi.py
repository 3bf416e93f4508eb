"""One SERVER span per HTTP request, streamed or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rhizome_telemetry import semconv
from rhizome_telemetry.logs import log_trace_id
from rhizome_telemetry.propagation import from_headers
from rhizome_telemetry.tracing import Span, SpanKind, start_span

SCOPE_KEY = "rhizome.span"
PROBE_PATHS = frozenset({"/health", "/healthz", "/ready", "/metrics"})

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class TracingMiddleware:
    """ASGI middleware that opens a span, hands it to the app and ends it when the last byte left.

    The span is in `scope["rhizome.span"]`; every response says `traceparent` and `x-trace-id`, so that a user
    can quote what to look for. A client that goes away before the end makes the span a cancelled one. The
    chunks of a stream make no spans.

    Args:
        app: the application.
        untraced_paths: paths without spans and headers, because probes would drown everything else.
    """

    def __init__(
        self,
        app: App,
        untraced_paths: frozenset[str] = PROBE_PATHS,
    ) -> None:
        self._app = app
        self._untraced_paths = untraced_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; only HTTP is traced."""
        if scope["type"] != "http" or scope["path"] in self._untraced_paths:
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        span = start_span(
            method,
            kind=SpanKind.SERVER,
            parent=from_headers(scope["headers"]),
            attributes={
                semconv.HTTP_REQUEST_METHOD: method,
                semconv.URL_PATH: scope["path"],
                semconv.URL_SCHEME: scope.get("scheme"),
            },
        )
        scope[SCOPE_KEY] = span
        exchange = _Exchange(span, receive, send)
        token = log_trace_id.set(span.trace_parent.trace_id)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:
            exchange.cancelled = not exchange.complete
            raise
        except Exception as error:
            if not exchange.cancelled:
                span.record_error(error)
            raise
        finally:
            log_trace_id.reset(token)
            route = getattr(scope.get("route"), "path", None)
            if route:
                span.update_name(f"{method} {route}")
                span.set_attribute(semconv.HTTP_ROUTE, route)
            exchange.end_span()


class _Exchange:
    """Watches one request's messages for the status, the end and the client's departure."""

    def __init__(self, span: Span, receive: Receive, send: Send) -> None:
        self._span = span
        self._receive = receive
        self._send = send
        self._status: int | None = None
        self.complete = False
        self.cancelled = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.complete:
            self.cancelled = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            parent = self._span.trace_parent
            message["headers"] = [
                *message.get("headers", ()),
                (b"traceparent", parent.to_header().encode()),
                (b"x-trace-id", parent.trace_id.encode()),
            ]
        try:
            await self._send(message)
        except OSError:
            self.cancelled = True
            raise
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True

    def end_span(self) -> None:
        span, status = self._span, self._status
        if status is not None:
            span.set_attribute(semconv.HTTP_RESPONSE_STATUS_CODE, status)
        if self.cancelled and not self.complete:
            span.end("cancelled")
        elif status is None or status >= 500:
            span.set_attribute(semconv.ERROR_TYPE, str(status) if status else "no_response")
            span.end("error")
        else:
            span.end()
