"""Both transports carry the same engine, and it forgets whoever leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

import grpc
import grpc.aio
import pytest

from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.generate_pb2 import FINISH_REASON_CANCELLED, FINISH_REASON_LENGTH
from rhizome_testing.hash_core import all_events, token_request, tokens_in
from rhizome_testing.metronome import Pace
from rhizome_testing.metronome_conversation import MODEL
from rhizome_testing.metronome_engine import MetronomeEngine, open_requests, set_pace
from rhizome_testing.processes import ProcessFixture
from rhizome_testing.running_stack import DEMO_MODEL
from rhizome_text.tokenizer import Tokenizer
from rhizome_text.tokenizer_files import read_tokenizer_files
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.zmq_client import ZmqEngineClient


@pytest.fixture
async def engine(tmp_path):
    tmp_path.chmod(0o700)
    engine = MetronomeEngine(
        read_tokenizer_files(DEMO_MODEL), Pace("rate", 500), endpoint=f"ipc://{tmp_path}/metronome.ipc"
    )
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture(params=["grpc", "zmq"])
async def connect(request, engine, tmp_path):
    clients = []

    def open_client(**options):
        if request.param == "grpc":
            client = GrpcEngineClient(engine.target, peer_name="test", **options)
        else:
            client = ZmqEngineClient(f"ipc://{tmp_path}/metronome.ipc", peer_name="test", **options)
        clients.append(client)
        return client

    yield open_client
    for client in clients:
        await client.close()


async def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_request_runs_to_its_length(engine, connect):
    events = await all_events(connect(), token_request([5, 6, 7], max_tokens=20, request_id="a"))
    assert events[0].started.prompt_tokens == 3
    assert len(tokens_in(events)) == 20
    assert set(tokens_in(events)) <= set(engine.metronome.words)
    assert events[-1].finished.reason == FINISH_REASON_LENGTH
    assert events[-1].finished.usage.completion_tokens == 20
    assert engine.metronome.counts.open == 0


async def test_a_narrow_window_loses_no_token(engine, connect):
    engine.metronome.pace = Pace("saturate")
    client = connect(initial_credit=1)
    requests = [token_request([5], max_tokens=200, request_id=f"r{i}") for i in range(4)]
    answers = await asyncio.gather(*(all_events(client, request) for request in requests))
    assert [len(tokens_in(events)) for events in answers] == [200] * 4
    assert engine.metronome.counts.tokens == 800


async def test_a_cancelled_request_is_free_at_once(engine, connect):
    engine.metronome.pace = Pace("idle")
    client = connect()
    async with aclosing(client.generate(token_request([5], request_id="a"))) as events:
        assert (await anext(events)).HasField("started")
        assert (await client.load()).running_requests == 1
        await client.cancel("a")
        assert (await anext(events)).finished.reason == FINISH_REASON_CANCELLED
    load = await client.load()
    assert (load.running_requests, load.totals.received, load.totals.aborted) == (0, 1, 1)


@pytest.mark.parametrize("pace", ["idle", "rate 500"])
async def test_a_peer_that_leaves_takes_its_requests_with_it(engine, connect, pace):
    engine.metronome.pace = Pace.parse(pace)
    client = connect()
    async with aclosing(client.generate(token_request([5], max_tokens=10**6, request_id="a"))) as events:
        await anext(events)
        assert engine.metronome.counts.open == 1
        await client.frames.close()
        await eventually(lambda: engine.metronome.counts.open == 0)
        assert not engine.metronome.peers


async def test_it_hands_out_a_model_and_its_tokenizer(connect):
    client = connect()
    await client.wait_ready(10)
    info, files = await client.model_info(), await client.tokenizer_files()
    assert info.model == MODEL
    assert info.tokenizer_sha256 == files.sha256
    assert Tokenizer.from_files(files.files).vocab_size == info.vocab_size


async def test_generate_sends_one_message_per_token(engine):
    async with grpc.aio.insecure_channel(engine.target) as channel:
        request = token_request([5], max_tokens=7, request_id="a")
        messages = [message async for message in EngineServiceStub(channel).Generate(request)]
    assert [len(message.delta.token_ids) for message in messages] == [0, *[1] * 7, 0]
    assert messages[-1].finished.usage.completion_tokens == 7


async def test_the_pace_changes_only_while_nothing_is_open(engine, connect):
    engine.metronome.pace = Pace("idle")
    async with aclosing(connect().generate(token_request([5], request_id="a"))) as events:
        await anext(events)
        with pytest.raises(grpc.RpcError) as refused:
            await asyncio.to_thread(set_pace, engine.target, "instant")
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await eventually(lambda: engine.metronome.counts.open == 0)
    with pytest.raises(grpc.RpcError):
        await asyncio.to_thread(set_pace, engine.target, "presto")
    await asyncio.to_thread(set_pace, engine.target, "instant")
    assert engine.metronome.pace == Pace("instant")


def test_the_command_serves_until_sigterm(tmp_path):
    tmp_path.chmod(0o700)
    process = ProcessFixture.module(
        "rhizome_testing.metronome_engine",
        ["--model", str(DEMO_MODEL), "--endpoint", f"ipc://{tmp_path}/metronome.ipc", "--pace", "saturate"],
        log_dir=tmp_path,
    )
    with process:
        target = process.wait_for_line(r"^serving on (\S+)$")[1]
        assert open_requests(target) == 0
        set_pace(target, "rate 20")
        assert process.terminate() == 0
    assert not (tmp_path / "metronome.ipc").exists()
