"""One trace holds every edge from service to service, however the request ends."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from rhizome_launcher.ports import port_is_free
from rhizome_launcher.service_process import ServiceProcess
from rhizome_testing.otlp_sink import OtlpSink, SunkSpan
from rhizome_testing.running_stack import RunningStack

EDGES = {("rhizome-gateway", "rhizome-proxy"), ("rhizome-proxy", "rhizome-engine")}
COUNT = [{"role": "user", "content": "Count from 1 to 20"}]


def traceparent() -> tuple[str, dict[str, str]]:
    """A trace id of a caller, and the header that carries it."""
    trace_id = secrets.token_hex(16)
    return trace_id, {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}


def wait_complete(sink: OtlpSink, trace_id: str) -> dict[tuple[str, str], SunkSpan]:
    """The whole trace, by service and name or kind, once every service has sent its spans."""
    services = {service for edge in EDGES for service in edge}

    def complete(spans: list[SunkSpan]) -> bool:
        return {span.service for span in spans if span.kind == "SERVER"} >= services

    spans = sink.wait_for(complete, trace_id=trace_id, timeout_s=15)
    assert sink.edges(trace_id) == EDGES
    found = {(span.service, span.kind): span for span in spans if span.kind != "INTERNAL"}
    return found | {(span.service, span.name): span for span in spans if span.kind == "INTERNAL"}


def attributes(span: SunkSpan) -> Mapping[str, Any]:
    return span.attributes


def test_a_whole_answer_makes_one_trace(client: OpenAI, otlp_sink: OtlpSink) -> None:
    trace_id, headers = traceparent()
    raw = client.chat.completions.with_raw_response.create(
        model="rhizome-demo",
        messages=COUNT,  # type: ignore[arg-type]
        temperature=0,
        extra_headers=headers,
    )
    assert raw.headers["x-trace-id"] == trace_id
    usage = raw.parse().usage
    assert usage is not None
    spans = wait_complete(otlp_sink, trace_id)
    assert all(span.status != "ERROR" for span in spans.values())
    chat = attributes(spans["rhizome-gateway", "CLIENT"])
    assert chat["gen_ai.operation.name"] == "chat"
    assert chat["gen_ai.request.model"] == "rhizome-demo"
    assert chat["gen_ai.usage.input_tokens"] == usage.prompt_tokens
    assert chat["gen_ai.usage.output_tokens"] == usage.completion_tokens
    picks = [event for event in spans["rhizome-proxy", "SERVER"].events if event.name == "rhizome.proxy.pick"]
    assert len(picks) == 1
    phases = [spans["rhizome-engine", f"rhizome.{phase}"] for phase in ("queue", "prefill", "decode")]
    engine = spans["rhizome-engine", "SERVER"]
    assert all(span.parent_span_id == engine.span_id for span in phases)
    assert [span.start_ns for span in phases] == sorted(span.start_ns for span in phases)
    assert all(engine.start_ns <= span.start_ns <= span.end_ns <= engine.end_ns for span in phases)


def test_a_stream_makes_one_trace(client: OpenAI, otlp_sink: OtlpSink) -> None:
    trace_id, headers = traceparent()
    stream = client.chat.completions.create(
        model="rhizome-demo",
        messages=COUNT,  # type: ignore[arg-type]
        temperature=0,
        stream=True,
        extra_headers=headers,
    )
    chunks = len(list(stream))
    spans = wait_complete(otlp_sink, trace_id)
    assert all(span.status != "ERROR" for span in spans.values())
    assert attributes(spans["rhizome-gateway", "CLIENT"])["gen_ai.request.stream"] is True
    assert len(otlp_sink.trace(trace_id)) < chunks, "a span per chunk would drown everything else"


@pytest.fixture
def impatient_gateway(stack: RunningStack, otlp_sink: OtlpSink, tmp_path: Path) -> Iterator[str]:
    """A second gateway on the same proxy, which gives every request 0.3 s; yields its address."""
    port = next(port for port in range(18500, 18600) if port_is_free("127.0.0.1", port))
    gateway = ServiceProcess(
        "impatient",
        "rhizome_gateway",
        ["--port", str(port), "--engine", stack.stack.proxy_address],
        log_path=tmp_path / "gateway.log",
        environment={**otlp_sink.environment, "RHIZOME_GATEWAY_REQUEST_TIMEOUT_S": "0.3"},
    )
    stack.run(gateway.start())
    try:
        deadline = time.monotonic() + 60
        short = {"model": "rhizome-demo", "messages": COUNT, "max_tokens": 1}
        while True:
            # An answer, as the first one may find it has to connect first, for which 0.3 s need not do.
            try:
                if httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=short).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert gateway.exit_code is None and time.monotonic() < deadline, gateway.log_tail()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        stack.run(gateway.stop(10))


def test_an_error_from_the_engine_is_an_error_in_every_service(
    impatient_gateway: str, otlp_sink: OtlpSink
) -> None:
    """The deadline passes inside the engine, after the first token, so the error comes in the stream."""
    trace_id, headers = traceparent()
    request = {
        "model": "rhizome-demo",
        "messages": COUNT,
        "max_tokens": 1500,
        "ignore_eos": True,
    }
    response = httpx.post(
        f"{impatient_gateway}/v1/chat/completions", json=request, headers=headers, timeout=30
    )
    assert response.status_code == 504, response.text
    assert response.json()["error"]["code"] == "timeout"
    spans = wait_complete(otlp_sink, trace_id)
    for service in ("rhizome-gateway", "rhizome-proxy", "rhizome-engine"):
        assert spans[service, "SERVER"].status == "ERROR", service


def test_a_cancelled_stream_is_cancelled_in_every_service(client: OpenAI, otlp_sink: OtlpSink) -> None:
    trace_id, headers = traceparent()
    stream = client.chat.completions.create(
        model="rhizome-demo",
        messages=COUNT,  # type: ignore[arg-type]
        stream=True,
        max_tokens=1500,
        extra_headers=headers,
        extra_body={"ignore_eos": True},
    )
    for seen, _ in enumerate(stream):
        if seen == 4:
            break
    stream.close()
    spans = wait_complete(otlp_sink, trace_id)
    for service in ("rhizome-gateway", "rhizome-proxy", "rhizome-engine"):
        assert attributes(spans[service, "SERVER"]).get("error.type") == "cancelled", service


def test_a_stop_string_ends_a_request_well_in_every_service(client: OpenAI, otlp_sink: OtlpSink) -> None:
    trace_id, headers = traceparent()
    answer = client.chat.completions.create(
        model="rhizome-demo",
        messages=COUNT,  # type: ignore[arg-type]
        temperature=0,
        stop=["5"],
        extra_headers=headers,
    )
    assert answer.choices[0].finish_reason == "stop"
    spans = wait_complete(otlp_sink, trace_id)
    assert all(span.status != "ERROR" for span in spans.values())


def test_a_callers_trace_is_continued_and_a_missing_one_is_begun(stack: RunningStack) -> None:
    trace_id, headers = traceparent()
    assert httpx.get(f"{stack.url}/v1/models", headers=headers).headers["x-trace-id"] == trace_id
    assert len(httpx.get(f"{stack.url}/v1/models").headers["x-trace-id"]) == 32
