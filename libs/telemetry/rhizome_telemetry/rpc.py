"""Spans around RPCs, on whichever transport they travel.

Hand-made instead of the contrib instrumentation, which ends cancelled streams as successful ones.
"""

from __future__ import annotations

from typing import Final

from rhizome_telemetry import semconv
from rhizome_telemetry.propagation import TraceParent
from rhizome_telemetry.tracing import Span, SpanKind, start_span

# Codes that are the server's fault; the others are the caller's and leave a SERVER span unset.
_SERVER_ERRORS: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "ABORTED"}
)


def start_server_span(method: str, parent: TraceParent | None, *, start_time_ns: int | None = None) -> Span:
    """Begin the span of an RPC that arrived.

    Args:
        method: full name, such as `rhizome.engine.v1.EngineService/Generate`.
        parent: the caller's span.
        start_time_ns: when it arrived, in nanoseconds since the epoch; now when absent.
    """
    attributes = {semconv.RPC_SYSTEM_NAME: semconv.RPC_SYSTEM_GRPC, semconv.RPC_METHOD: method}
    return start_span(
        method, kind=SpanKind.SERVER, parent=parent, attributes=attributes, start_time_ns=start_time_ns
    )


def start_client_span(method: str, parent: TraceParent | None, target: str = "") -> Span:
    """Begin the span of an RPC that leaves; `target` is `host:port` or the path of a socket."""
    attributes: dict[str, str | int | None] = {
        semconv.RPC_SYSTEM_NAME: semconv.RPC_SYSTEM_GRPC,
        semconv.RPC_METHOD: method,
    }
    host, colon, port = target.rpartition(":")
    if colon and port.isdigit():
        attributes[semconv.SERVER_ADDRESS] = host
        attributes[semconv.SERVER_PORT] = int(port)
    elif target:
        attributes[semconv.SERVER_ADDRESS] = target
    return start_span(method, kind=SpanKind.CLIENT, parent=parent, attributes=attributes)


def end_rpc_span(
    span: Span, code: str = "OK", message: str = "", *, server: bool, end_time_ns: int | None = None
) -> None:
    """End the span of an RPC by its gRPC status.

    Args:
        span: as `start_server_span` or `start_client_span` made it.
        code: name of the status code, such as `UNAVAILABLE`.
        message: the status message.
        server: whether it is the callee's span; the caller's faults are no errors there.
        end_time_ns: when it ended, in nanoseconds since the epoch; now when absent.
    """
    span.set_attribute(semconv.RPC_RESPONSE_STATUS_CODE, code)
    if code == "CANCELLED":
        span.end("cancelled", end_time_ns)
    elif code == "OK" or (server and code not in _SERVER_ERRORS):
        span.end("ok", end_time_ns)
    else:
        span.set_attribute(semconv.ERROR_TYPE, code)
        span.record_error(message or code)
        span.end("error", end_time_ns)
