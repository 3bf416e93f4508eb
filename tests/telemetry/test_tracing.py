"""Spans, exported over OTLP/HTTP to a sink that runs here, and spans that are off."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from rhizome_telemetry import semconv
from rhizome_telemetry.propagation import (
    from_metadata,
    from_proto,
    parse_traceparent,
    to_metadata,
    to_proto,
)
from rhizome_telemetry.rpc import end_rpc_span, start_client_span, start_server_span
from rhizome_telemetry.tracing import (
    SpanKind,
    configure_tracing,
    shutdown_tracing,
    start_span,
    tracing_enabled,
)
from rhizome_testing.otlp_sink import OtlpSink, SunkSpan

VARIABLES = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_SDK_DISABLED",
    "OTEL_SERVICE_NAME",
    "OTEL_TRACES_EXPORTER",
    "OTEL_TRACES_SAMPLER",
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield
    shutdown_tracing()


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpSink]:
    with OtlpSink() as sink:
        for name, value in sink.environment.items():
            monkeypatch.setenv(name, value)
        configure_tracing("rhizome-test")
        yield sink
        shutdown_tracing()


def only(sink: OtlpSink) -> SunkSpan:
    (span,) = sink.wait_for(lambda spans: len(spans) == 1)
    return span


def test_off_without_an_endpoint():
    configure_tracing("rhizome-test")
    assert not tracing_enabled()
    assert not start_span("x").recording


@pytest.mark.parametrize(("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_can_be_switched_off_although_an_endpoint_is_set(monkeypatch, name, value):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    configure_tracing("rhizome-test")
    assert not tracing_enabled()


def test_off_imports_no_sdk():
    code = (
        "import sys, rhizome_telemetry.tracing as t, rhizome_telemetry.asgi; t.configure_tracing('x'); "
        "t.start_span('x').end(); sys.exit(any(m.startswith('opentelemetry.sdk') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_off_makes_an_unsampled_trace_at_the_edge_and_hands_a_parent_on():
    edge, other = start_span("a").trace_parent, start_span("b").trace_parent
    assert parse_traceparent(edge.to_header()) == edge
    assert not edge.sampled
    assert edge.trace_id != other.trace_id
    assert start_span("child", parent=edge).trace_parent is edge


def test_off_costs_next_to_nothing():
    parent = start_span("a").trace_parent
    best = 1.0
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(2000):
            with start_span("x", parent=parent) as span:
                span.set_attribute("key", 1)
        best = min(best, (time.perf_counter() - began) / 2000)
    assert best < 10e-6  # about 0.5 µs here; generous, because the machine may be busy


def test_exports_name_kind_attributes_events_and_service(sink):
    span = start_span("work", kind=SpanKind.CLIENT, attributes={"a": 1, "nothing": None})
    span.set_attributes({"b": ["x", "y"], "c": None})
    span.add_event("pick", {"backend": "one", "policy": None}, timestamp_ns=5_000)
    span.update_name("better name")
    span.end()
    sunk = only(sink)
    assert (sunk.service, sunk.name, sunk.kind) == ("rhizome-test", "better name", "CLIENT")
    assert sunk.attributes == {"a": 1, "b": ["x", "y"]}
    assert [(event.name, event.time_ns, dict(event.attributes)) for event in sunk.events] == [
        ("pick", 5_000, {"backend": "one"})
    ]
    assert (sunk.status, sunk.parent_span_id) == ("UNSET", "")
    assert (sunk.trace_id, sunk.span_id) == (span.trace_parent.trace_id, span.trace_parent.span_id)


def test_a_remote_parent_is_kept_with_its_state(sink):
    remote = parse_traceparent(f"00-{'a' * 32}-{'b' * 16}-01", "vendor=1")
    span = start_span("child", parent=remote)
    assert span.trace_parent.trace_id == "a" * 32
    assert span.trace_parent.tracestate == "vendor=1"
    assert span.trace_parent.sampled
    span.end()
    assert only(sink).parent_span_id == "b" * 16


def test_what_the_caller_does_not_sample_is_not_recorded_but_passed_on(sink):
    remote = parse_traceparent(f"00-{'a' * 32}-{'b' * 16}-00")
    span = start_span("unsampled", parent=remote)
    assert not span.recording
    assert not span.trace_parent.sampled
    assert span.trace_parent.trace_id == "a" * 32
    span.end()
    start_span("sampled").end()
    assert only(sink).name == "sampled"


def test_a_sampler_that_does_not_follow_parents_is_asked_all_the_same(monkeypatch, sink):
    shutdown_tracing()
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    configure_tracing("rhizome-test")
    start_span("anyway", parent=parse_traceparent(f"00-{'a' * 32}-{'b' * 16}-00")).end()
    assert only(sink).parent_span_id == "b" * 16


def test_the_request_id_goes_down_with_the_spans(sink):
    parent = parse_traceparent(f"00-{'a' * 32}-{'b' * 16}-01", request_id="req_1")
    for span in (start_span("child", parent=parent), start_span("x", parent=replace(parent, flags=0))):
        assert span.trace_parent.request_id == "req_1"
        assert from_proto(to_proto(span.trace_parent)).request_id == "req_1"
        assert from_metadata(to_metadata(span.trace_parent)).request_id == "req_1"


def test_a_span_has_links(sink):
    linked = parse_traceparent(f"00-{'a' * 32}-{'b' * 16}-01")
    start_span("step", links=[linked]).end()
    assert only(sink).links == (("a" * 32, "b" * 16),)


def test_a_span_can_be_made_after_the_fact(sink):
    span = start_span("decode", start_time_ns=1_000_000)
    span.end(end_time_ns=3_000_000)
    span.end("error")
    sunk = only(sink)
    assert (sunk.start_ns, sunk.end_ns, sunk.status) == (1_000_000, 3_000_000, "UNSET")


@pytest.mark.parametrize(
    ("error", "status", "message", "kind"),
    [
        (None, "UNSET", "", None),
        (ValueError("broken"), "ERROR", "broken", "ValueError"),
        (asyncio.CancelledError(), "ERROR", "cancelled", "cancelled"),
        (GeneratorExit(), "ERROR", "cancelled", "cancelled"),
    ],
)
def test_as_a_context_manager_it_ends_by_how_the_block_ended(sink, error, status, message, kind):
    def block() -> None:
        with start_span("block"):
            if error is not None:
                raise error

    if error is None:
        block()
    else:
        with pytest.raises(type(error)):
            block()
    sunk = only(sink)
    assert (sunk.status, sunk.status_message) == (status, message)
    assert sunk.attributes.get(semconv.ERROR_TYPE) == kind


def test_a_recorded_error_makes_the_span_an_error(sink):
    span = start_span("x")
    span.record_error("no pages left")
    span.end()
    assert (only(sink).status, only(sink).status_message) == ("ERROR", "no pages left")


def test_a_seed_does_not_repeat_trace_ids(sink):
    random.seed(1)
    first = start_span("a").trace_parent
    random.seed(1)
    second = start_span("b").trace_parent
    assert first.trace_id != second.trace_id
    assert first.span_id != second.span_id


@pytest.mark.parametrize(
    ("code", "server", "status", "kind"),
    [
        ("OK", True, "UNSET", None),
        ("INVALID_ARGUMENT", True, "UNSET", None),
        ("INVALID_ARGUMENT", False, "ERROR", "INVALID_ARGUMENT"),
        ("UNAVAILABLE", True, "ERROR", "UNAVAILABLE"),
        ("CANCELLED", True, "ERROR", "cancelled"),
        ("CANCELLED", False, "ERROR", "cancelled"),
    ],
)
def test_rpc_spans_end_by_their_code(sink, code, server, status, kind):
    start = start_server_span if server else start_client_span
    end_rpc_span(start("some.Service/Method", None), code, server=server)
    sunk = only(sink)
    assert sunk.status == status
    assert sunk.attributes.get(semconv.ERROR_TYPE) == kind
    assert sunk.attributes[semconv.RPC_RESPONSE_STATUS_CODE] == code
    assert sunk.attributes[semconv.RPC_METHOD] == "some.Service/Method"


@pytest.mark.parametrize(
    ("target", "address", "port"),
    [("127.0.0.1:50051", "127.0.0.1", 50051), ("unix:/run/x.sock", "unix:/run/x.sock", None)],
)
def test_client_spans_say_where_they_go(sink, target, address, port):
    start_client_span("some.Service/Method", None, target).end()
    attributes = only(sink).attributes
    assert attributes[semconv.SERVER_ADDRESS] == address
    assert attributes.get(semconv.SERVER_PORT) == port


def test_shutting_down_delivers_what_is_waiting(monkeypatch):
    with OtlpSink() as sink:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "renamed")
        configure_tracing("rhizome-test")
        for number in range(10):
            start_span(f"span {number}").end()
        shutdown_tracing()
        assert [span.service for span in sink.spans] == ["renamed"] * 10
        assert not tracing_enabled()


def test_edges_say_which_service_called_which(monkeypatch):
    with OtlpSink() as sink:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint)
        parent = None
        for service in ("gateway", "proxy", "engine"):
            configure_tracing(service)
            span = start_span(service, parent=parent)
            span.end()
            parent = span.trace_parent
            shutdown_tracing()
        assert sink.edges() == {("gateway", "proxy"), ("proxy", "engine")}
