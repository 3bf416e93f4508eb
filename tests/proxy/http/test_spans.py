"""The HTTP face's part of a trace."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from tests.proxy.http.conftest import CHAT, CHATS, Bench, url
from tests.relay.conftest import Call

from rhizome_telemetry.tracing import configure_tracing, shutdown_tracing
from rhizome_testing.otlp_sink import OtlpSink, SunkSpan

TRACE_ID, CALLER = "ab" * 16, "cd" * 8
HEADER = f"00-{TRACE_ID}-{CALLER}-01"


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpSink]:
    with OtlpSink() as sink:
        for name, value in sink.environment.items():
            monkeypatch.setenv(name, value)
        configure_tracing("rhizome-proxy")
        yield sink
        shutdown_tracing()


async def spans_of(sink: OtlpSink, count: int) -> tuple[SunkSpan, list[SunkSpan]]:
    """The request's span, and those of its attempts in order."""
    spans: Any = await asyncio.to_thread(
        sink.wait_for, lambda spans: len(spans) >= count, trace_id=TRACE_ID, timeout_s=20.0
    )
    assert len(spans) == count
    (server,) = [span for span in spans if span.kind == "SERVER"]
    clients = [span for span in spans if span.kind == "CLIENT"]
    assert server.parent_span_id == CALLER and len(clients) == count - 1
    assert all(span.parent_span_id == server.span_id for span in clients)
    return server, sorted(clients, key=lambda span: span.start_ns)


def names(span: SunkSpan) -> list[str]:
    return [event.name.rpartition(".")[2] for event in span.events]


async def test_a_request_and_its_attempts(bench: Bench, sink: OtlpSink):
    full, free = await bench.simulate(), await bench.simulate()
    face = await bench.proxy(backends=f"{url(full)}?priority=0,{url(free)}?priority=1")
    full.faults.status = 503
    answer = await face.post(CHAT, {**CHATS, "max_tokens": 2, "model": "simulated"}, traceparent=HEADER)
    assert answer.status_code == 200
    server, (refused, served) = await spans_of(sink, 3)
    assert server.name == f"POST {CHAT}" and server.status in ("OK", "UNSET")
    assert server.attributes["gen_ai.request.model"] == "simulated"
    assert server.attributes["http.response.status_code"] == 200
    assert names(server).count("pick") == 2
    assert refused.status == "ERROR" and refused.attributes["server.port"] == full.port
    assert served.status in ("OK", "UNSET") and served.attributes["server.port"] == free.port
    assert "first_byte" in names(served) and "first_byte" not in names(refused)


async def test_a_stream_that_goes_on_elsewhere(bench: Bench, sink: OtlpSink):
    face = await bench.proxy(await bench.simulate(), await bench.simulate())
    for server in bench.servers:
        server.faults.reset, server.faults.count = 3, 1
    answer = await face.stream(CHAT, {**CHATS, "max_tokens": 9}, traceparent=HEADER)
    assert answer.done
    span, attempts = await spans_of(sink, 2 + face.proxy.router.counts.resumes)
    assert names(span).count("resume") == face.proxy.router.counts.resumes > 0
    assert span.status in ("OK", "UNSET")
    assert attempts[0].status == "ERROR" and attempts[-1].status in ("OK", "UNSET")


async def test_a_stream_that_is_cut(bench: Bench, sink: OtlpSink):
    server = await bench.simulate()
    face = await bench.proxy(server)
    server.faults.reset = 3
    await face.stream(CHAT, {**CHATS, "max_tokens": 9, "logprobs": True}, traceparent=HEADER)
    span, _ = await spans_of(sink, 2)
    assert span.status == "ERROR" and span.attributes["error.type"] == "truncated"


async def test_a_backend_is_told_of_its_attempt(bench: Bench, sink: OtlpSink):
    heard: list[bytes] = []

    async def hear(call: Call) -> None:
        heard.extend(call.request.values(b"traceparent"))
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    face = await bench.proxy(await bench.script(hear))
    await face.post(CHAT, CHATS, traceparent=HEADER)
    _, (attempt,) = await spans_of(sink, 2)
    assert heard == [f"00-{TRACE_ID}-{attempt.span_id}-01".encode()]


async def test_a_request_that_nobody_takes(bench: Bench, sink: OtlpSink):
    face = await bench.proxy(await bench.simulate())
    bench.servers[0].stop()
    await face.ready(0)
    await face.post(CHAT, CHATS, traceparent=HEADER)
    span, _ = await spans_of(sink, 1)
    assert span.status == "ERROR" and span.attributes["http.response.status_code"] == 503
