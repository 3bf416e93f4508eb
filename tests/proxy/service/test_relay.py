"""Generate and the other calls that one engine answers."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest

from rhizome.engine.v1.engine_service_pb2 import GetModelInfoRequest, GetTokenizerRequest, TokenizeRequest
from rhizome.engine.v1.generate_pb2 import GenerateRequest, GenerateResponse
from rhizome_backends.spec import BackendSpec
from rhizome_transport.errors import EngineError, from_rpc_error

GENERATE = "/rhizome.engine.v1.EngineService/Generate"
FULL = EngineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", reason="QUEUE_FULL", retry_after_s=3.0)
GONE = EngineError(grpc.StatusCode.UNAVAILABLE, "the core is starting", reason="MODEL_LOADING")


async def failure_of(call) -> EngineError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await call.read() is not grpc.aio.EOF:
            pass
    return from_rpc_error(caught.value)


def kinds(answers: list[GenerateResponse]) -> list[str | None]:
    return [answer.WhichOneof("event") for answer in answers]


async def test_streams_generate_through(cluster):
    engine = await cluster.engine()
    stub = cluster.stub(await cluster.proxy(engine))
    answers = [answer async for answer in stub.Generate(GenerateRequest(request_id="r1", text="hi"))]
    assert kinds(answers) == ["started", "delta", "delta", "delta", "finished"]
    assert engine.generates[0][0] == GenerateRequest(request_id="r1", text="hi")


async def test_request_and_answers_keep_their_bytes(cluster):
    engine = await cluster.engine()
    unknown = b"\xfa\x7f\x03new"
    channel = cluster.channel(await cluster.proxy(engine))
    payload = GenerateRequest(text="hi").SerializeToString() + unknown
    answers = [answer async for answer in channel.unary_stream(GENERATE)(payload)]
    assert engine.generates[0][0].SerializeToString().endswith(unknown)
    assert all(GenerateResponse.FromString(answer).SerializeToString() == answer for answer in answers)


@pytest.mark.parametrize("refusal", [FULL, GONE], ids=lambda error: error.code.name)
async def test_a_refusal_goes_to_the_next_engine_unseen(cluster, refusal):
    first, second = await cluster.engine(generate_error=refusal), await cluster.engine()
    stub = cluster.stub(await cluster.proxy(first, second))
    for _ in range(24):
        answers = [answer async for answer in stub.Generate(GenerateRequest())]
        assert kinds(answers)[-1] == "finished" and len(answers) == 5
    assert first.generates and len(second.generates) == 24


async def test_all_engines_full_is_resource_exhausted_with_their_hint(cluster):
    engines = [await cluster.engine(generate_error=FULL) for _ in range(2)]
    stub = cluster.stub(await cluster.proxy(*engines))
    error = await failure_of(stub.Generate(GenerateRequest()))
    assert (error.code, error.reason, error.retry_after_s) == (FULL.code, "QUEUE_FULL", 3.0)


async def test_what_the_caller_did_wrong_comes_back_with_its_details(cluster):
    wrong = EngineError(grpc.StatusCode.INVALID_ARGUMENT, "top_p is 7", param="top_p", reason="OUT_OF_BOUNDS")
    engines = [await cluster.engine(generate_error=wrong) for _ in range(2)]
    stub = cluster.stub(await cluster.proxy(*engines))
    error = await failure_of(stub.Generate(GenerateRequest()))
    assert (error.code, error.message, error.param, error.reason) == (
        wrong.code,
        wrong.message,
        "top_p",
        "OUT_OF_BOUNDS",
    )
    assert sum(len(engine.generates) for engine in engines) == 1


async def test_an_engine_lost_before_its_first_message_is_replaced_unseen(cluster, eventually):
    first = await cluster.engine(generate_pause=asyncio.Event())
    proxy = await cluster.proxy(first)
    call = cluster.stub(proxy).Generate(GenerateRequest(request_id="silent"))
    await eventually(lambda: bool(first.generates))
    second = await cluster.engine()
    proxy.registry.add(BackendSpec(second.address))
    await eventually(lambda: len(proxy.registry.ready()) == 2)
    await first.kill()
    assert len([answer async for answer in call]) == 5
    assert len(second.generates) == 1


async def test_an_engine_lost_after_its_first_message_is_aborted(cluster):
    engine = await cluster.engine(generate_pause=asyncio.Event())
    other = await cluster.engine(generate_pause=engine.generate_pause)
    proxy = await cluster.proxy(engine, other)
    call = cluster.stub(proxy).Generate(GenerateRequest())
    assert (await call.read()).HasField("started")
    await (engine if engine.generates else other).kill()
    error = await failure_of(call)
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ENGINE_LOST")
    assert len(engine.generates) + len(other.generates) == 1


async def test_a_caller_that_gives_up_is_cancelled_at_the_engine(cluster, eventually):
    engine = await cluster.engine(generate_pause=asyncio.Event())
    proxy = await cluster.proxy(engine)
    reading, silent = (cluster.stub(proxy).Generate(GenerateRequest(request_id=i)) for i in ("r1", "silent"))
    assert (await reading.read()).HasField("started")
    await eventually(lambda: len(engine.generates) == 2)
    reading.cancel()
    silent.cancel()
    await eventually(lambda: engine.generate_cancelled == 2)
    await eventually(lambda: next(iter(proxy.registry)).in_flight == 0)


async def test_hands_on_trace_and_time_but_no_credentials(cluster):
    engine = await cluster.engine()
    stub = cluster.stub(await cluster.proxy(engine))
    header = f"00-{'ab' * 16}-{'cd' * 8}-01"
    metadata = (("traceparent", header), ("authorization", "Bearer secret"))
    async for _ in stub.Generate(GenerateRequest(), timeout=20, metadata=metadata):
        pass
    _, seen, time_left_s = engine.generates[0]
    assert seen["traceparent"].split("-")[1] == "ab" * 16
    assert "authorization" not in seen
    assert 15 < time_left_s < 21  # gRPC rounds deadlines up on the wire


async def test_without_a_deadline_none_is_made_up(cluster):
    engine = await cluster.engine()
    stub = cluster.stub(await cluster.proxy(engine))
    async for _ in stub.Generate(GenerateRequest()):
        pass
    assert engine.generates[0][2] is None


async def test_unary_calls_and_the_tokenizer_come_from_an_engine(cluster):
    stub = cluster.stub(await cluster.proxy(await cluster.engine(model="apple")))
    assert (await stub.GetModelInfo(GetModelInfoRequest())).model == "apple"
    chunks = [answer.chunk async for answer in stub.GetTokenizer(GetTokenizerRequest())]
    assert chunks == [b"ab", b"cd"]


async def test_what_an_engine_does_not_offer_comes_back_as_it_says(cluster):
    stub = cluster.stub(await cluster.proxy(await cluster.engine()))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Tokenize(TokenizeRequest(text="hi"))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_no_engine_ready_is_unavailable_with_a_hint(cluster):
    engine = await cluster.engine()
    engine.set_serving(False)
    stub = cluster.stub(await cluster.proxy(engine))
    error = await failure_of(stub.Generate(GenerateRequest()))
    assert (error.code, error.retry_after_s) == (grpc.StatusCode.UNAVAILABLE, 1.0)
    with pytest.raises(grpc.aio.AioRpcError, match="no engine can take the request: 1 known"):
        await stub.GetModelInfo(GetModelInfoRequest())


@pytest.mark.parametrize("payload", [b"\xff\xff", b"\x1a\x04\x12\x02\xff\xff"], ids=["noise", "broken ids"])
async def test_bytes_that_are_no_request_are_refused_here(cluster, payload):
    engine = await cluster.engine()
    channel = cluster.channel(await cluster.proxy(engine))
    error = await failure_of(channel.unary_stream(GENERATE)(payload))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "no rhizome.engine.v1.GenerateRequest" in error.message
    assert not engine.generates
