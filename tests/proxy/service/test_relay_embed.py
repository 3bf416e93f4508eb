"""`Embed` through the pool: one engine answers all of a call, and until it did, another may."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest

from rhizome.engine.v1.engine_service_pb2 import POOLING_CLS, AbortRequest, Embedding, EmbedRequest
from rhizome.engine.v1.generate_pb2 import TokenIds
from rhizome.engine.v1.load_pb2 import Load
from rhizome_backends.spec import BackendSpec
from rhizome_transport.errors import EngineError, from_rpc_error

REQUEST = EmbedRequest(inputs=[TokenIds(ids=[1, 2, 3]), TokenIds(ids=[4])], pooling=POOLING_CLS)
VECTORS = [Embedding(values=[3, 0.5]), Embedding(values=[1, 0.5])]
FULL = EngineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", reason="QUEUE_FULL", retry_after_s=3.0)
GONE = EngineError(grpc.StatusCode.UNAVAILABLE, "the core is starting", reason="MODEL_LOADING")
WRONG = EngineError(
    grpc.StatusCode.INVALID_ARGUMENT, "inputs[1]: the prompt is empty", reason="BAD", param="inputs[1]"
)


async def failure_of(call) -> EngineError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_request_and_vectors_pass_through(cluster):
    engine = await cluster.engine()
    header = f"00-{'ab' * 16}-{'cd' * 8}-01"
    stub = cluster.stub(await cluster.proxy(engine))
    response = await stub.Embed(REQUEST, timeout=20, metadata=(("traceparent", header),))
    assert list(response.embeddings) == VECTORS
    request, metadata, time_left_s = engine.embeds[0]
    assert request == REQUEST and 15 < time_left_s < 21
    assert metadata["traceparent"].split("-")[1] == "ab" * 16


@pytest.mark.parametrize("refusal", [FULL, GONE], ids=lambda error: error.code.name)
async def test_a_refusal_goes_to_the_next_engine_unseen(cluster, refusal):
    first, second = await cluster.engine(embed_error=refusal), await cluster.engine()
    stub = cluster.stub(await cluster.proxy(first, second))
    for _ in range(24):
        assert list((await stub.Embed(REQUEST)).embeddings) == VECTORS
    assert first.embeds and len(second.embeds) == 24


async def test_what_the_caller_did_wrong_is_tried_once(cluster):
    engines = [await cluster.engine(embed_error=WRONG) for _ in range(2)]
    error = await failure_of(cluster.stub(await cluster.proxy(*engines)).Embed(REQUEST))
    assert (error.code, error.param, error.reason) == (WRONG.code, "inputs[1]", "BAD")
    assert sum(len(engine.embeds) for engine in engines) == 1


async def test_all_engines_full_is_resource_exhausted_with_their_hint(cluster):
    engines = [await cluster.engine(embed_error=FULL) for _ in range(2)]
    error = await failure_of(cluster.stub(await cluster.proxy(*engines)).Embed(REQUEST))
    assert (error.code, error.retry_after_s) == (FULL.code, 3.0)
    assert all(engine.embeds for engine in engines)


async def test_an_engine_lost_while_it_embeds_is_replaced_unseen(cluster, eventually):
    first = await cluster.engine(embed_pause=asyncio.Event())
    proxy = await cluster.proxy(first)
    call = asyncio.ensure_future(cluster.stub(proxy).Embed(REQUEST))
    await eventually(lambda: bool(first.embeds))
    second = await cluster.engine()
    proxy.registry.add(BackendSpec(second.address))
    await eventually(lambda: len(proxy.registry.ready()) == 2)
    await first.kill()
    assert list((await call).embeddings) == VECTORS
    assert len(second.embeds) == 1


async def test_it_goes_to_the_engine_with_the_least_to_do(cluster, eventually):
    busy = await cluster.engine(
        load=Load(instance_id="a", sequence=1, running_requests=9, waiting_requests=9)
    )
    idle = await cluster.engine(
        load=Load(instance_id="b", sequence=1, running_requests=0, waiting_requests=0)
    )
    proxy = await cluster.proxy(busy, idle)
    await eventually(lambda: all(backend.report is not None for backend in proxy.registry))
    for _ in range(8):
        await cluster.stub(proxy).Embed(REQUEST)
    assert (len(busy.embeds), len(idle.embeds)) == (0, 8)


async def test_open_calls_count_as_load(cluster, eventually):
    pause = asyncio.Event()
    engines = [await cluster.engine(embed_pause=pause) for _ in range(2)]
    proxy = await cluster.proxy(*engines)
    stub = cluster.stub(proxy)
    calls = [asyncio.ensure_future(stub.Embed(REQUEST)) for _ in range(6)]
    await eventually(lambda: sum(len(engine.embeds) for engine in engines) == 6)
    assert [len(engine.embeds) for engine in engines] == [3, 3]
    pause.set()
    for response in await asyncio.gather(*calls):
        assert list(response.embeddings) == VECTORS
    await eventually(lambda: all(backend.in_flight == 0 for backend in proxy.registry))


async def test_a_caller_that_gives_up_is_cancelled_at_the_engine(cluster, eventually):
    engine = await cluster.engine(embed_pause=asyncio.Event())
    proxy = await cluster.proxy(engine)
    call = cluster.stub(proxy).Embed(REQUEST)
    await eventually(lambda: bool(engine.embeds))
    call.cancel()
    await eventually(lambda: engine.embed_cancelled == 1)
    await eventually(lambda: next(iter(proxy.registry)).in_flight == 0)


async def test_abort_reaches_the_engines(cluster):
    engines = [await cluster.engine() for _ in range(2)]
    await cluster.stub(await cluster.proxy(*engines)).Abort(AbortRequest(request_ids=["mine"]))
    assert [engine.aborts for engine in engines] == [["mine"], ["mine"]]
