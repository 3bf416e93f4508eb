"""The client that gateways use, with a proxy where it expects an engine."""

from __future__ import annotations

from contextlib import aclosing

import grpc
import pytest

from rhizome.engine.v1.generate_pb2 import GenerateRequest, TokenIds
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_client import GrpcEngineClient

PROMPT = GenerateRequest(token_ids=TokenIds(ids=[1, 2, 3]))


@pytest.fixture
async def connect():
    clients = []

    def open_client(proxy) -> GrpcEngineClient:
        clients.append(GrpcEngineClient(f"127.0.0.1:{proxy.port}", peer_name="gateway"))
        return clients[-1]

    yield open_client
    for client in clients:
        await client.close()


async def tokens_of(client: GrpcEngineClient) -> list[int]:
    return [i async for answer in client.generate(PROMPT) for i in answer.delta.token_ids]


async def test_generates_through_a_proxy(cluster, connect):
    client = connect(await cluster.proxy(await cluster.engine(), await cluster.engine()))
    await client.wait_ready(10)
    assert await tokens_of(client) == [5, 6, 7]
    assert (await client.model_info()).model == "scripted"


async def test_survives_the_death_of_an_engine(cluster, connect):
    first, second = await cluster.engine(), await cluster.engine()
    client = connect(await cluster.proxy(first, second))
    await first.kill()
    for _ in range(8):
        assert await tokens_of(client) == [5, 6, 7]


async def test_closing_the_answer_cancels_at_the_engine(cluster, script, connect, eventually):
    engine = await cluster.engine(script.start_and_hold)
    client = connect(await cluster.proxy(engine))
    async with aclosing(client.generate(PROMPT)) as answers:
        assert (await anext(answers)).HasField("started")
    await eventually(lambda: len(engine.cancels) == 1)


async def test_a_lost_engine_is_aborted_and_a_missing_one_unavailable(cluster, script, connect, eventually):
    engine = await cluster.engine(script.start_and_hold)
    proxy = await cluster.proxy(engine, resume_wait_s=0.0)
    client = connect(proxy)
    answers = client.generate(PROMPT)
    assert (await anext(answers)).HasField("started")
    await engine.kill()
    with pytest.raises(EngineError) as caught:
        await anext(answers)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.ABORTED, "ENGINE_LOST")
    await eventually(lambda: not proxy.registry.ready())
    with pytest.raises(EngineError) as caught:
        await tokens_of(client)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
