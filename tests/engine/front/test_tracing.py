"""The spans an engine sends: one SERVER span per request below the caller's, and a span per phase."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from rhizome.engine.v1.engine_service_pb2 import EmbedRequest
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.generate_pb2 import GenerateRequest, TokenIds
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.otlp_sink import OtlpSink, SunkSpan

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"


@pytest.fixture(scope="module")
def sink() -> Iterator[OtlpSink]:
    with OtlpSink() as one:
        yield one


@pytest.fixture(scope="module")
def engine(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, sink: OtlpSink
) -> Iterator[EngineProcess]:
    folder = tmp_path_factory.mktemp("traced")
    with EngineProcess(checkpoint, folder, environment=sink.environment) as one:
        one.wait_serving()
        yield one


def request(max_tokens: int) -> GenerateRequest:
    message = GenerateRequest(text="Hello, world")
    message.stop.max_tokens = max_tokens
    message.stop.ignore_eos = True
    return message


def metadata(trace_id: str) -> tuple[tuple[str, str], ...]:
    return (("traceparent", f"00-{trace_id}-{CALLER}-01"),)


def server_span(spans: list[SunkSpan]) -> SunkSpan | None:
    return next((span for span in spans if span.kind == "SERVER"), None)


async def test_a_request_is_one_span_with_its_phases(engine: EngineProcess, sink: OtlpSink) -> None:
    async with grpc.aio.insecure_channel(engine.target) as channel:
        call = EngineServiceStub(channel).Generate(request(4), metadata=metadata(TRACE))
        usage = [event async for event in call][-1].finished.usage
    spans = sink.wait_for(lambda found: server_span(found) is not None, trace_id=TRACE)
    server = server_span(spans)
    assert server is not None
    assert (server.service, server.parent_span_id) == ("rhizome-engine", CALLER)
    assert server.name == "rhizome.engine.v1.EngineService/Generate"
    assert server.attributes["rpc.response.status_code"] == "OK"
    assert server.attributes["gen_ai.usage.input_tokens"] == usage.prompt_tokens
    assert server.attributes["gen_ai.usage.output_tokens"] == 4
    assert server.attributes["gen_ai.usage.cache_read.input_tokens"] == usage.cached_tokens
    assert server.attributes["rhizome.request.preemptions"] == 0
    assert server.attributes["rhizome.request.forced_tokens"] == 0
    assert server.attributes["gen_ai.response.finish_reasons"] == ["length"]
    phases = [span for span in spans if span.parent_span_id == server.span_id]
    assert [span.name for span in phases] == ["rhizome.queue", "rhizome.prefill", "rhizome.decode"]
    for before, after in itertools.pairwise(phases):
        assert before.start_ns <= before.end_ns == after.start_ns <= after.end_ns
    assert server.start_ns == phases[0].start_ns and phases[-1].end_ns <= server.end_ns


async def test_an_embed_is_one_span_whatever_it_embeds(engine: EngineProcess, sink: OtlpSink) -> None:
    trace_id = TRACE[8:] + TRACE[:8]
    inputs = [TokenIds(ids=[1, 2, 3])] * 5
    async with grpc.aio.insecure_channel(engine.target) as channel:
        embed = EngineServiceStub(channel).Embed
        await embed(EmbedRequest(inputs=inputs), metadata=metadata(trace_id))
        with pytest.raises(grpc.aio.AioRpcError):
            await embed(
                EmbedRequest(inputs=[TokenIds(ids=[1] * 2000)] * 300),
                timeout=1.0,
                metadata=metadata(trace_id),
            )
    spans = sink.wait_for(lambda found: len(found) == 2, trace_id=trace_id)
    assert {span.name for span in spans} == {"rhizome.engine.v1.EngineService/Embed"}
    assert {(span.kind, span.parent_span_id) for span in spans} == {("SERVER", CALLER)}
    done, late = sorted(spans, key=lambda span: span.start_ns)
    assert done.attributes["gen_ai.operation.name"] == "embeddings"
    assert done.attributes["gen_ai.usage.input_tokens"] == 15
    assert done.attributes["rpc.response.status_code"] == "OK"
    assert late.attributes["rpc.response.status_code"] in ("DEADLINE_EXCEEDED", "CANCELLED")


async def test_a_cancelled_request_ends_as_cancelled(engine: EngineProcess, sink: OtlpSink) -> None:
    trace_id = TRACE[::-1]
    async with grpc.aio.insecure_channel(engine.target) as channel:
        call = EngineServiceStub(channel).Generate(request(1900), metadata=metadata(trace_id))
        await call.read()
        call.cancel()
        spans = sink.wait_for(lambda found: server_span(found) is not None, trace_id=trace_id)
    server = server_span(spans)
    assert server is not None
    assert server.status == "ERROR"
    assert server.attributes["error.type"] == "cancelled"
