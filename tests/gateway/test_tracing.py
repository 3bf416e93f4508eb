import asyncio
from collections.abc import Iterator

import pytest
from grpc import StatusCode
from tests.gateway.conftest import eventually

from rhizome_telemetry.tracing import configure_tracing, shutdown_tracing
from rhizome_testing.otlp_sink import OtlpSink
from rhizome_testing.talking_engine import Hang, Refuse, Say, TalkingEngine
from rhizome_transport.errors import EngineError

BODY = {"model": "talking-model", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpSink]:
    with OtlpSink() as sink:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint)
        configure_tracing("rhizome-gateway")
        try:
            yield sink
        finally:
            shutdown_tracing()


def _spans(sink: OtlpSink) -> dict[str, list]:
    shutdown_tracing()
    spans: dict[str, list] = {}
    for span in sink.spans:
        spans.setdefault(span.kind, []).append(span)
    return spans


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_makes_a_server_and_a_client_span(
    sink: OtlpSink, gateway, engine: TalkingEngine, stream: bool
) -> None:
    answer = await gateway.chat(stream=stream, temperature=0.5, max_tokens=7)
    assert answer.status_code == 200
    spans = _spans(sink)
    server = next(span for span in spans["SERVER"] if "chat" in span.name)
    client = next(span for span in spans["CLIENT"] if span.name == "chat talking-model")
    assert server.name == "POST /v1/chat/completions"
    assert client.parent_span_id == server.span_id
    assert server.trace_id == client.trace_id == answer.headers["x-trace-id"]
    assert engine.submits[0].trace.traceparent.split("-")[1:3] == [client.trace_id, client.span_id]
    attributes = client.attributes
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == "talking-model"
    assert attributes["gen_ai.request.max_tokens"] == 7
    assert attributes["gen_ai.usage.input_tokens"] == 25
    assert attributes["gen_ai.usage.output_tokens"] == 6
    assert list(attributes["gen_ai.response.finish_reasons"]) == ["stop"]
    assert "ERROR" not in (server.status, client.status)


async def test_an_error_is_on_both_spans(sink: OtlpSink, gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("a"), Refuse(EngineError(StatusCode.INTERNAL, "the step failed"))]
    assert (await gateway.chat()).status_code == 500
    spans = _spans(sink)
    assert next(span for span in spans["CLIENT"] if span.name == "chat talking-model").status == "ERROR"
    assert next(span for span in spans["SERVER"] if "chat" in span.name).status == "ERROR"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_departed_client_makes_cancelled_spans(
    sink: OtlpSink, gateway, engine: TalkingEngine, stream: bool
) -> None:
    engine.script = lambda prompt: [Say("a"), Hang()]
    asking = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=BODY | {"stream": stream}))
    await eventually(lambda: len(engine.submits) == 1)
    asking.cancel()
    await asyncio.wait([asking])
    await eventually(lambda: len(engine.cancelled) == 1)
    await eventually(lambda: not gateway.server.server_state.tasks)
    spans = _spans(sink)
    for kind, name in (("CLIENT", "chat talking-model"), ("SERVER", "POST /v1/chat/completions")):
        span = next(span for span in spans[kind] if span.name == name)
        assert (span.status, span.attributes["error.type"]) == ("ERROR", "cancelled")


async def test_probes_make_no_spans(sink: OtlpSink, gateway) -> None:
    await gateway.http.get("/health")
    assert not any(span.name.endswith(("/health", "/ready")) for span in _spans(sink).get("SERVER", []))
