"""An OTLP/HTTP collector inside the test process, so that traces of real processes can be asserted on."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

Value = str | bool | int | float | list["Value"] | None

TRACES_PATH = "/v1/traces"


@dataclass(frozen=True, slots=True)
class SunkEvent:
    """An event of a span."""

    name: str
    time_ns: int
    attributes: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class SunkSpan:
    """A span as it arrived.

    Attributes:
        service: `service.name` of the process that sent it.
        kind: `SERVER`, `CLIENT`, `INTERNAL`, `PRODUCER`, `CONSUMER` or `UNSPECIFIED`.
        status: `UNSET`, `OK` or `ERROR`.
        parent_span_id: empty for a root.
        links: trace and span id of each.
    """

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_span_id: str
    start_ns: int
    end_ns: int
    status: str
    status_message: str
    attributes: Mapping[str, Value] = field(repr=False)
    events: tuple[SunkEvent, ...] = field(repr=False)
    links: tuple[tuple[str, str], ...] = field(repr=False, default=())


class OtlpSink:
    """Takes what exporters send and answers questions about it.

    Services find it through `OTEL_EXPORTER_OTLP_ENDPOINT=sink.endpoint`.
    """

    def __init__(self) -> None:
        self._spans: list[SunkSpan] = []
        self._arrived = threading.Condition()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sink._take(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), name="otlp-sink", daemon=True
        )
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """The value for `OTEL_EXPORTER_OTLP_ENDPOINT`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make a process send its spans here, soon."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }

    @property
    def spans(self) -> list[SunkSpan]:
        """All spans so far, in the order of arrival."""
        with self._arrived:
            return list(self._spans)

    def trace(self, trace_id: str) -> list[SunkSpan]:
        """The spans of one trace so far, by start time."""
        return sorted(
            (span for span in self.spans if span.trace_id == trace_id), key=lambda one: one.start_ns
        )

    def wait_for(
        self,
        wanted: Callable[[list[SunkSpan]], bool],
        *,
        trace_id: str | None = None,
        timeout_s: float = 30.0,
    ) -> list[SunkSpan]:
        """Wait until the spans (of one trace) satisfy a condition.

        Returns:
            The spans, by start time.

        Raises:
            TimeoutError: they did not in time; the message lists what there is.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with self._arrived:
                spans = [span for span in self._spans if trace_id in (None, span.trace_id)]
                if wanted(spans):
                    return sorted(spans, key=lambda one: one.start_ns)
                if not self._arrived.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    names = [f"{one.service}: {one.name} [{one.status}]" for one in spans]
                    raise TimeoutError(f"the wanted spans did not arrive within {timeout_s:g} s; got {names}")

    def edges(self, trace_id: str | None = None) -> set[tuple[str, str]]:
        """Which service called which: pairs of caller and callee, services of parent and child spans."""
        spans = self.spans
        service_of = {span.span_id: span.service for span in spans}
        return {
            (service_of[span.parent_span_id], span.service)
            for span in spans
            if trace_id in (None, span.trace_id)
            and span.parent_span_id in service_of
            and service_of[span.parent_span_id] != span.service
        }

    def clear(self) -> None:
        """Forget everything."""
        with self._arrived:
            self._spans.clear()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, exchange: BaseHTTPRequestHandler) -> None:
        body = exchange.rfile.read(int(exchange.headers.get("Content-Length", "0")))
        if exchange.path != TRACES_PATH:
            exchange.send_error(404, f"only {TRACES_PATH} is here")
            return
        if exchange.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        spans = _read(ExportTraceServiceRequest.FromString(body))
        with self._arrived:
            self._spans.extend(spans)
            self._arrived.notify_all()
        answer = ExportTraceServiceResponse().SerializeToString()
        exchange.send_response(200)
        exchange.send_header("Content-Type", "application/x-protobuf")
        exchange.send_header("Content-Length", str(len(answer)))
        exchange.end_headers()
        exchange.wfile.write(answer)


def _read(request: ExportTraceServiceRequest) -> list[SunkSpan]:
    spans: list[SunkSpan] = []
    for resource in request.resource_spans:
        service = str(_attributes(resource.resource.attributes).get("service.name", ""))
        for scope in resource.scope_spans:
            spans.extend(_span(service, span) for span in scope.spans)
    return spans


def _span(service: str, span: trace_pb2.Span) -> SunkSpan:
    return SunkSpan(
        service=service,
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        status_message=span.status.message,
        attributes=_attributes(span.attributes),
        events=tuple(
            SunkEvent(event.name, event.time_unix_nano, _attributes(event.attributes))
            for event in span.events
        ),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "bytes_value":
        return value.bytes_value.hex()
    if kind == "string_value":
        return value.string_value
    if kind == "bool_value":
        return value.bool_value
    if kind == "int_value":
        return value.int_value
    if kind == "double_value":
        return value.double_value
    return None
