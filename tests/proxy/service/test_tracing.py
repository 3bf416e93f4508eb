"""The proxy's part of a trace."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import pytest

from rhizome.common.v1.common_pb2 import TraceContext
from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome_backends.spec import BackendSpec
from rhizome_telemetry.tracing import configure_tracing, shutdown_tracing
from rhizome_testing.otlp_sink import OtlpSink
from rhizome_transport.errors import EngineError

METHOD = "rhizome.engine.v1.EngineService/Generate"
TRACE_ID, CALLER = "ab" * 16, "cd" * 8
HEADER = f"00-{TRACE_ID}-{CALLER}-01"
TRACE = TraceContext(traceparent=HEADER)
GONE = EngineError(grpc.StatusCode.UNAVAILABLE, "the core is starting", reason="MODEL_LOADING")


@pytest.fixture
def sink(monkeypatch) -> Iterator[OtlpSink]:
    with OtlpSink() as sink:
        for name, value in sink.environment.items():
            monkeypatch.setenv(name, value)
        configure_tracing("rhizome-proxy")
        yield sink
        shutdown_tracing()


async def spans_of(sink, count):
    spans = await asyncio.to_thread(
        sink.wait_for, lambda spans: len(spans) >= count, trace_id=TRACE_ID, timeout_s=20.0
    )
    server = [span for span in spans if span.kind == "SERVER"]
    client = [span for span in spans if span.kind == "CLIENT"]
    assert len(server) == 1 and {span.name for span in spans} == {METHOD}
    assert server[0].parent_span_id == CALLER
    assert all(span.parent_span_id == server[0].span_id for span in client)
    return server[0], client


async def test_one_server_span_and_one_client_span_for_each_attempt(cluster, script, sink, eventually):
    refusing = await cluster.engine(script.refuse(GONE))
    proxy = await cluster.proxy(refusing)
    taking = await cluster.engine(load=None)
    peer = await cluster.peer(proxy)
    await peer.submit("warm-up")
    await peer.outcome("warm-up")
    proxy.registry.add(BackendSpec(taking.address))
    await eventually(lambda: len(proxy.registry.ready()) == 2)
    # Keep the refusing engine the less loaded one, so that it is tried first.
    lease = proxy.registry.get(taking.address).lease()
    await peer.submit("r1", trace=TRACE)
    await peer.outcome("r1")
    lease.release()
    server, (first, second) = await spans_of(sink, 3)
    assert server.status != "ERROR"
    assert server.attributes["rhizome.request.id"] == "r1"
    picks = [event.attributes for event in server.events if event.name == "rhizome.proxy.pick"]
    assert [pick["rhizome.proxy.backend"] for pick in picks] == [refusing.address, taking.address]
    assert picks[0]["rhizome.proxy.policy"] == "cost"
    assert picks[1]["rhizome.proxy.in_flight"] == 1
    assert (first.status, first.attributes["rpc.response.status_code"]) == ("ERROR", "UNAVAILABLE")
    assert second.status != "ERROR" and second.attributes["server.port"] == taking.port
    # The engine hangs its spans below the attempt that it answered.
    assert taking.submits[-1].trace.traceparent.split("-")[1:3] == [TRACE_ID, second.span_id]


async def test_a_cancelled_request_ends_its_spans_as_cancelled(cluster, script, sink):
    peer = await cluster.peer(await cluster.proxy(await cluster.engine(script.start_and_hold)))
    await peer.submit("r1", trace=TRACE)
    await peer.wait_events("r1", 1)
    await peer.cancel("r1")
    await peer.outcome("r1")
    server, (attempt,) = await spans_of(sink, 2)
    for span in (server, attempt):
        assert (span.status, span.status_message) == ("ERROR", "cancelled")


async def test_a_peer_that_vanishes_ends_its_spans_as_cancelled(cluster, script, sink):
    peer = await cluster.peer(await cluster.proxy(await cluster.engine(script.start_and_hold)))
    await peer.submit("r1", trace=TRACE)
    await peer.wait_events("r1", 1)
    await peer.close()
    server, (attempt,) = await spans_of(sink, 2)
    assert (server.status_message, attempt.status_message) == ("cancelled", "cancelled")


async def test_a_lost_engine_ends_the_spans_as_errors(cluster, script, sink):
    engine = await cluster.engine(script.start_and_hold)
    peer = await cluster.peer(await cluster.proxy(engine, resume_wait_s=0.0))
    await peer.submit("r1", trace=TRACE)
    await peer.wait_events("r1", 1)
    await engine.kill()
    await peer.error("r1")
    server, (attempt,) = await spans_of(sink, 2)
    assert (server.status, attempt.status) == ("ERROR", "ERROR")
    assert server.attributes["rpc.response.status_code"] == "ABORTED"


async def test_a_resume_is_an_event_and_a_further_attempt(cluster, script, sink, eventually):
    engines = [await cluster.engine(script.start_and_hold) for _ in range(2)]
    peer = await cluster.peer(await cluster.proxy(*engines))
    await peer.submit("r1", trace=TRACE)
    await peer.wait_events("r1", 1)
    lost, other = engines if engines[0].submits else reversed(engines)
    other.script = script.answer
    await lost.kill()
    await peer.outcome("r1")
    server, attempts = await spans_of(sink, 3)
    assert server.status != "ERROR" and len(attempts) == 2
    (resume,) = [event.attributes for event in server.events if event.name == "rhizome.proxy.resume"]
    assert resume["rhizome.proxy.backend"] == lost.address
    assert resume["error.type"] == "UNAVAILABLE"


async def test_generate_is_traced_by_its_metadata(cluster, sink):
    engine = await cluster.engine()
    stub = cluster.stub(await cluster.proxy(engine))
    async for _ in stub.Generate(GenerateRequest(request_id="r1"), metadata=(("traceparent", HEADER),)):
        pass
    server, (attempt,) = await spans_of(sink, 2)
    assert server.status != "ERROR" and attempt.status != "ERROR"
    assert engine.generates[0][1]["traceparent"].split("-")[2] == attempt.span_id
