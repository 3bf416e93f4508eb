"""Spans of the HTTP face: one for each request and one for each attempt at a backend."""

from __future__ import annotations

from rhizome_proxy.pool.backend import Backend
from rhizome_relay.picker import Ending, Outcome, Result
from rhizome_relay.request import RelayRequest
from rhizome_telemetry import semconv
from rhizome_telemetry.propagation import from_headers
from rhizome_telemetry.tracing import Span, SpanKind, start_span, tracing_enabled


def begin_request(request: RelayRequest) -> Span | None:
    """A request arrived; without tracing there is no span, and the client's own context passes untouched."""
    if not tracing_enabled():
        return None
    method, path = request.method.decode(), request.path.decode("latin-1")
    span = start_span(
        f"{method} {path}",
        kind=SpanKind.SERVER,
        parent=from_headers(request.headers),
        attributes={
            semconv.HTTP_REQUEST_METHOD: method,
            semconv.URL_PATH: path,
            semconv.CLIENT_ADDRESS: request.peer,
            semconv.REQUEST_ID: request.id.decode("latin-1"),
            semconv.GEN_AI_REQUEST_MODEL: request.model,
        },
    )
    request.trace_id = span.trace_parent.trace_id
    return span


def end_request(span: Span, result: Result) -> None:
    """The request is over."""
    span.set_attribute(semconv.HTTP_RESPONSE_STATUS_CODE, result.status or None)
    span.set_attribute(semconv.ATTEMPTS, result.attempts)
    if result.status >= 500 or (result.status and not result.whole):
        span.set_attribute(semconv.ERROR_TYPE, str(result.status) if result.whole else "truncated")
        span.end("error")
    else:
        span.end("ok" if result.whole else "cancelled")


def begin_attempt(request: Span, backend: Backend, policy: str) -> Span:
    """A backend was chosen."""
    pick: dict[str, str | int | None] = {
        semconv.PICK_BACKEND: backend.name,
        semconv.PICK_POLICY: policy,
        semconv.PICK_IN_FLIGHT: backend.in_flight,
    }
    request.add_event(semconv.EVENT_PICK, pick)
    where: dict[str, str | int | None] = {
        semconv.SERVER_ADDRESS: backend.spec.host,
        semconv.SERVER_PORT: backend.spec.port,
    }
    return start_span("attempt", kind=SpanKind.CLIENT, parent=request.trace_parent, attributes=where)


def end_attempt(span: Span, outcome: Outcome) -> None:
    """The attempt is over."""
    span.set_attribute(semconv.HTTP_RESPONSE_STATUS_CODE, outcome.status or None)
    if outcome.ending is Ending.CANCELLED:
        span.end("cancelled")
    elif outcome.ending is Ending.COMPLETE and outcome.status < 500:
        span.end()
    else:
        span.set_attribute(semconv.ERROR_TYPE, outcome.ending.value)
        span.end("error")
