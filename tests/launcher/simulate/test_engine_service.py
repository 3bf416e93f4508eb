from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from tests.launcher.simulate.conftest import FAST, exchange, until

from rhizome.engine.v1.engine_service_pb2 import WatchKvEventsRequest
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_CANCELLED,
    FINISH_REASON_LENGTH,
    GenerateRequest,
    GenerateResponse,
)
from rhizome_launcher.simulate.engine_service.server import EngineServer
from rhizome_launcher.simulate.physics import Physics
from rhizome_testing.byte_tokenizer import write_byte_tokenizer
from rhizome_text.tokenizer_files import read_tokenizer_files
from rhizome_transport.block_hashes import block_hashes
from rhizome_transport.channel import open_channel
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.inbox import as_response

SLOW = replace(FAST, itl_base_ms=20.0)  # a client that is late gets tokens merged


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    write_byte_tokenizer(tmp_path, 512)
    return read_tokenizer_files(tmp_path)


@pytest_asyncio.fixture
async def server(files: dict[str, bytes], request: pytest.FixtureRequest) -> AsyncIterator[EngineServer]:
    server = EngineServer(files, getattr(request, "param", FAST))
    await server.start()
    yield server
    await server.stop()


@pytest_asyncio.fixture
async def client(server: EngineServer) -> AsyncIterator[GrpcEngineClient]:
    client = GrpcEngineClient(f"127.0.0.1:{server.port}", peer_name="test")
    await client.wait_ready(5)
    yield client
    await client.close()


def request(ids: list[int], max_tokens: int = 20, **fields: Any) -> GenerateRequest:
    asked = GenerateRequest(**fields)
    asked.token_ids.ids.extend(ids)
    asked.stop.max_tokens = max_tokens
    return asked


async def run(client: GrpcEngineClient, asked: GenerateRequest) -> tuple[list[int], list[GenerateResponse]]:
    events = [event async for event in client.generate(asked, timeout_s=10)]
    return [token_id for event in events for token_id in event.delta.token_ids], events


@pytest.mark.parametrize("server", [SLOW], indirect=True)
async def test_a_request_starts_streams_and_finishes_with_its_account(client: GrpcEngineClient) -> None:
    ids, events = await run(client, request([5, 6, 7]))
    assert len(ids) == 20
    assert events[0].started.prompt_tokens == 3
    finished = events[-1].finished
    assert finished.reason == FINISH_REASON_LENGTH
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (3, 20)
    assert finished.timings.decode_time.ToNanoseconds() == pytest.approx(19 * 20e6)
    assert len(events) > 5, "tokens come one by one, not at the end"


async def test_tokens_are_words_of_the_tokenizer(client: GrpcEngineClient, files: dict[str, bytes]) -> None:
    ids, _ = await run(client, request([5, 6, 7], 200))
    letters = {*range(ord("A"), ord("Z") + 1), *range(ord("a"), ord("z") + 1)}
    assert set(ids) <= letters
    assert len(set(ids)) > 20
    assert dict((await client.tokenizer_files()).files) == files


@pytest.mark.parametrize("cut", [0, 1, 13, 20])
async def test_a_resumed_request_says_the_rest(client: GrpcEngineClient, cut: int) -> None:
    prompt = [300, 5, 70000]
    whole, _ = await run(client, request(prompt))
    asked = request(prompt + whole[:cut], resumed_tokens=cut)
    rest, events = await run(client, asked)
    assert whole[:cut] + rest == whole
    usage = events[-1].finished.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 20)


async def test_the_seed_matters_unless_greedy(client: GrpcEngineClient) -> None:
    said = []
    for seed, temperature in ((1, 1.0), (2, 1.0), (1, 0.0), (2, 0.0)):
        asked = request([5])
        asked.sampling.seed, asked.sampling.temperature = seed, temperature
        said.append((await run(client, asked))[0])
    assert said[0] != said[1]
    assert said[2] == said[3]


async def test_without_credit_tokens_wait_and_merge(server: EngineServer) -> None:
    client = GrpcEngineClient(f"127.0.0.1:{server.port}", peer_name="slow", initial_credit=1)
    streams = [await client.open(request([5, n], 300), lambda: None) for n in range(3)]
    await until(lambda: server.engine.totals.completed == 3)
    for stream in streams:
        await until(lambda stream=stream: stream.ended)  # type: ignore[misc]
        tokens, events = 0, 0
        while (arrived := stream.take()) is not None:
            tokens += len(as_response(arrived).delta.token_ids)
            events += 1
        assert events < 10
        assert tokens == 300
    await client.close()


async def test_cancelling_stops_the_engine(server: EngineServer, client: GrpcEngineClient) -> None:
    events = []
    async for event in client.generate(request([5], 100_000, request_id="one")):
        events.append(event)
        if len(events) == 3:
            await client.cancel("one")
    assert events[-1].finished.reason == FINISH_REASON_CANCELLED
    assert server.engine.running == 0
    assert server.engine.totals.aborted == 1


async def test_generate_serves_people_with_token_ids(server: EngineServer) -> None:
    async with open_channel(f"127.0.0.1:{server.port}") as channel:
        stub = EngineServiceStub(channel)
        events = [event async for event in stub.Generate(request([5, 6], 4))]
        assert sum(len(event.delta.token_ids) for event in events) == 4
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in stub.Generate(GenerateRequest(text="hello")):
                pass
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_load_and_info_tell_of_the_pool(files: dict[str, bytes]) -> None:
    server = EngineServer(files, Physics(max_running=1, step_tokens=64, itl_base_ms=50, kv_blocks=100))
    await server.start()
    client = GrpcEngineClient(f"127.0.0.1:{server.port}", peer_name="test")
    streams = [await client.open(request([5] * 40, 50), lambda: None) for _ in range(3)]
    await until(lambda: server.engine.running == 1)
    load, info = await client.load(), await client.model_info()
    assert (load.running_requests, load.waiting_requests, load.kv_pages_in_use) == (1, 2, 3)
    assert load.kv_pages_total == info.kv_pages_total == 100
    assert load.page_size == info.page_size == 16
    for stream in streams:
        stream.close()
    await client.close()
    await server.stop()


async def test_kv_events_name_blocks_as_the_contract_does(
    server: EngineServer, client: GrpcEngineClient
) -> None:
    prompt = list(range(1000, 1040))
    await run(client, request(prompt, 1))
    async with open_channel(f"127.0.0.1:{server.port}") as channel:
        watch: Any = EngineServiceStub(channel).WatchKvEvents(WatchKvEventsRequest())
        snapshot = await asyncio.wait_for(watch.read(), 5)
        first = block_hashes(prompt, 16, "").tolist()
        assert snapshot.events[0].HasField("cleared")
        assert list(snapshot.events[1].stored.block_hashes) == first
        longer = prompt[:32] + list(range(2000, 2032))
        await run(client, request(longer, 1))
        news = await asyncio.wait_for(watch.read(), 5)
        assert news.sequence == snapshot.sequence + 1
        stored = news.events[0].stored
        assert stored.parent_hash == first[-1]
        assert list(stored.block_hashes) == block_hashes(longer, 16, "").tolist()[2:]
        watch.cancel()


async def test_faults_come_over_the_port_beside(server: EngineServer, client: GrpcEngineClient) -> None:
    status, _ = await exchange(server.admin_port, "POST", "/simulate", {"status": 503, "count": 1})
    assert status == 200
    with pytest.raises(EngineError) as failed:
        await run(client, request([5]))
    assert failed.value.code == grpc.StatusCode.UNAVAILABLE
    assert len((await run(client, request([5])))[0]) == 20
    status, body = await exchange(server.admin_port, "POST", "/simulate", {"slow_loris": True})
    assert status == 400
    assert b"slow_loris" in body


async def test_a_stall_keeps_the_stream_open(server: EngineServer, client: GrpcEngineClient) -> None:
    server.administration.break_down({"stall": 2})
    stream = await client.open(request([5], 10), lambda: None)
    await until(lambda: server.engine.totals.completed == 1)
    assert not stream.ended
    server.administration.break_down({"stall": None})
    assert len((await run(client, request([5])))[0]) == 20
    stream.close()
