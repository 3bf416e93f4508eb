"""`Embed` over gRPC: front, core and model in their own processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import torch
import transformers

from rhizome.engine.v1 import engine_service_pb2 as messages
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.generate_pb2 import TokenIds
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.text_requests import run, text_of, text_request
from rhizome_transport.errors import EngineError, from_rpc_error
from rhizome_transport.grpc_client import GrpcEngineClient

INPUTS = [[(13 * place + number) % 256 for place in range(3 + 40 * number)] for number in range(6)]


def embed_request(inputs: list[list[int]], **fields: Any) -> messages.EmbedRequest:
    return messages.EmbedRequest(inputs=[TokenIds(ids=ids) for ids in inputs], **fields)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return EngineServiceStub(channel)


@pytest.fixture
async def client(shared_engine: EngineProcess) -> AsyncIterator[GrpcEngineClient]:
    one = GrpcEngineClient(shared_engine.target, peer_name="test")
    yield one
    await one.close()


async def test_vectors_are_transformers_own(client: GrpcEngineClient, checkpoint: Path) -> None:
    response = await client.embed(embed_request(INPUTS), timeout_s=30)
    model = transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
    assert response.usage.prompt_tokens == sum(map(len, INPUTS))
    for ids, embedding in zip(INPUTS, response.embeddings, strict=True):
        with torch.no_grad():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        expected = torch.nn.functional.normalize(mean, dim=0).numpy()
        assert np.abs(np.array(embedding.values) - expected).max() <= 1e-5


async def test_the_model_says_what_it_makes(client: GrpcEngineClient) -> None:
    info = await client.model_info()
    assert info.default_pooling == messages.POOLING_MEAN
    response = await client.embed(embed_request([[1]]))
    assert len(response.embeddings[0].values) == info.embedding_size > 0


async def test_errors_keep_their_input_and_reason(client: GrpcEngineClient) -> None:
    with pytest.raises(EngineError) as caught:
        await client.embed(embed_request([[1], [5] * 5000]))
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.param, caught.value.reason) == ("inputs[1]", "CONTEXT_LENGTH_EXCEEDED")


async def test_a_deadline_ends_the_call(stub: Any, until_idle: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Embed(embed_request([[5] * 2000] * 300), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until_idle(stub)


@pytest.mark.parametrize("way", ["cancel", "abort"])
async def test_giving_up_frees_the_engine(stub: Any, until_idle: Any, way: str) -> None:
    embedding = stub.Embed(embed_request([[5] * 2000] * 300, request_id="mine"))
    await _busy(stub)
    if way == "cancel":
        embedding.cancel()
    else:
        await stub.Abort(messages.AbortRequest(request_ids=["mine"]))
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await embedding
    await until_idle(stub)


async def test_people_are_answered_beside_a_large_call(stub: Any) -> None:
    embedding = asyncio.ensure_future(stub.Embed(embed_request([[5] * 500] * 300)))
    await _busy(stub)
    assert text_of(await run(stub, text_request("Hello", max_tokens=5)))
    assert not embedding.done()
    assert len((await embedding).embeddings) == 300


async def test_a_core_that_dies_fails_the_call_so_that_it_can_be_sent_again(start_engine: Any) -> None:
    engine = start_engine()
    engine.wait_serving()
    async with grpc.aio.insecure_channel(engine.target) as channel:
        stub: Any = EngineServiceStub(channel)
        embedding = asyncio.ensure_future(stub.Embed(embed_request([[5] * 2000] * 500)))
        await _busy(stub)
        engine.core().kill()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await embedding
        assert from_rpc_error(caught.value).code is grpc.StatusCode.UNAVAILABLE


async def _busy(stub: Any, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not (await stub.GetLoad(messages.GetLoadRequest())).load.running_requests:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
