"""Several engine cores behind one client, without a proxy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest

from rhizome.engine.v1.engine_service_pb2 import EmbedRequest
from rhizome.engine.v1.generate_pb2 import GenerateRequest, StopConditions, TokenIds
from rhizome_testing.engine_ways import ask, kinds, tokens_of
from rhizome_testing.scripted_engine import TOKENIZER_FILES, ScriptedCore
from rhizome_transport.balanced_client import BalancedClient
from rhizome_transport.errors import EngineError
from rhizome_transport.zmq_client import ZmqEngineClient


class Pair:
    """Two cores and a client in front of both."""

    def __init__(self, folder: Path) -> None:
        self.endpoints = [f"ipc://{folder}/run/core-{name}.ipc" for name in "ab"]
        self.cores = [ScriptedCore(endpoint, instance_id=endpoint[-5]) for endpoint in self.endpoints]
        self.client = self.new_client(20.0)

    def new_client(self, connect_timeout_s: float) -> BalancedClient:
        return BalancedClient(
            [
                ZmqEngineClient(endpoint, peer_name="test", connect_timeout_s=connect_timeout_s)
                for endpoint in self.endpoints
            ],
            connect_timeout_s=connect_timeout_s,
        )

    async def all_connected(self) -> None:
        for client in self.client.clients:
            await client.frames.connection()

    @property
    def submits(self) -> list[list[str]]:
        return [[one.request.request_id for one in core.script.submits] for core in self.cores]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    with TemporaryDirectory(prefix="rz-") as folder:
        pair = Pair(Path(folder))
        yield pair
        await pair.client.close()
        for core in pair.cores:
            core.stop()


async def test_requests_go_where_the_fewest_tokens_are_open(pair, until):
    await pair.all_connected()
    long = GenerateRequest(
        request_id="hang-long", token_ids=TokenIds(ids=[1]), stop=StopConditions(max_tokens=2000)
    )
    async with aclosing(pair.client.generate(long)) as events:
        await anext(events)
        streams = []
        for number in range(3):  # 600 tokens each, one after another: never as much as is open there
            request = ask(f"hang-{number}", 100)
            request.stop.max_tokens = 500
            streams.append(pair.client.generate(request))
            await anext(streams[-1])
        assert sorted(map(len, pair.submits)) == [1, 3]
        busy = next(core for core in pair.cores if len(core.script.submits) == 1)
        assert busy.script.submits[0].request.request_id == "hang-long"
    await until(lambda: busy.open_requests == 0 and pair.client.clients[0].frames.open_requests in (0, 3))
    [event async for event in pair.client.generate(ask("count-9"))]
    assert busy.script.submits[-1].request.request_id == "count-9"
    for stream in streams:
        await stream.aclose()


async def test_what_is_open_is_counted_until_the_engine_ends_it(pair, until):
    await pair.all_connected()
    tokens = [client.frames for client in pair.client.clients]
    async with aclosing(pair.client.generate(ask("hang-1", 100))) as events:
        await anext(events)
        assert sum(frames.open_tokens for frames in tokens) == 612
    await until(lambda: sum(frames.open_tokens for frames in tokens) == 0)


async def test_a_request_that_one_core_refuses_goes_to_the_other(pair):
    await pair.all_connected()
    pair.cores[0].script.draining = 10
    for number in range(6):
        events = [event async for event in pair.client.generate(ask(f"count-{number}"))]
        assert kinds(events)[0] == "started"
        assert tokens_of(events) == list(range(5))
    assert len(pair.cores[1].script.submits) == 6


async def test_what_all_refuse_is_told_as_the_last_one_said_it(pair):
    await pair.all_connected()
    with pytest.raises(EngineError) as caught:
        [event async for event in pair.client.generate(ask("refuse-1"))]
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert pair.submits == [["refuse-1"], ["refuse-1"]]


async def test_a_core_that_dies_loses_only_what_had_begun(pair, until):
    await pair.all_connected()
    begun = pair.client.generate(ask("hang-begun"))
    await anext(begun)
    index = next(i for i, core in enumerate(pair.cores) if core.script.submits)
    # The other one gets the next request; this one waits in the queue of the first again.
    other = pair.client.generate(ask("hang-other", 2000))
    await anext(other)
    waiting = asyncio.ensure_future(anext(pair.client.generate(ask("queue-1"))))
    await until(lambda: "queue-1" in pair.submits[index])
    pair.cores[index].stop()
    with pytest.raises(EngineError) as caught:
        await anext(begun)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.ABORTED, "ENGINE_LOST")
    await until(lambda: "queue-1" in pair.submits[1 - index])
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await until(lambda: "queue-1" in pair.cores[1 - index].script.cancels)
    # And what comes next is served without a pause.
    assert tokens_of([event async for event in pair.client.generate(ask("count-1"))]) == list(range(5))


async def test_a_lost_request_waits_for_a_core_that_was_started_a_moment_ago(pair, until):
    pair.cores[1].stop()
    frames = [client.frames for client in pair.client.clients]
    await frames[0].connection()
    frames[1].begin()
    await asyncio.sleep(1.5)  # so that attempts to connect are far apart
    waiting = asyncio.ensure_future(anext(pair.client.generate(ask("queue-1"))))
    await until(lambda: "queue-1" in pair.submits[0])
    pair.cores[1] = ScriptedCore(pair.endpoints[1], instance_id="late")
    pair.cores[0].stop()
    await until(lambda: "queue-1" in pair.submits[1])
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_request_that_waits_for_a_core_can_be_cancelled_and_ends_with_its_client(pair, until):
    pair.cores[1].stop()
    await pair.client.clients[0].frames.connection()
    stream = await pair.client.open(ask("queue-1"), lambda: None)
    others = asyncio.ensure_future(anext(pair.client.generate(ask("queue-2"))))
    await until(lambda: pair.submits[0] == ["queue-1", "queue-2"])
    pair.cores[0].stop()
    await until(lambda: not pair.client.clients[0].frames.connected)
    stream.cancel()
    pair.cores[1] = ScriptedCore(pair.endpoints[1], instance_id="late")
    await until(lambda: pair.cores[1].script.cancels == ["queue-1"])
    stream.close()
    pair.cores[1].stop()  # and now there is nobody left
    await asyncio.sleep(0.2)
    await pair.client.close()
    with pytest.raises(EngineError):
        await asyncio.wait_for(others, 5)


async def test_a_core_that_drains_is_asked_again_where_it_was_if_no_other_is_left(pair):
    pair.cores[1].stop()
    await pair.client.clients[0].frames.connection()
    pair.cores[0].script.draining = 1
    assert tokens_of([event async for event in pair.client.generate(ask("count-1"))]) == list(range(5))


async def test_no_request_waits_for_a_core_beyond_its_time(pair, monkeypatch):
    async def lost(*_, **__):
        raise EngineError(grpc.StatusCode.UNAVAILABLE, "it was lost")

    pair.cores[1].stop()
    await pair.client.clients[0].frames.connection()
    monkeypatch.setattr(pair.client.clients[0], "embed", lost)
    begun = time.monotonic()
    with pytest.raises(EngineError):
        await pair.client.embed(EmbedRequest(), timeout_s=0.3)
    assert time.monotonic() - begun < 1.5


async def test_a_core_that_comes_back_gets_requests_again(pair, until):
    await pair.all_connected()
    pair.cores[0].stop()
    await until(lambda: not pair.client.clients[0].frames.connected)
    assert tokens_of([event async for event in pair.client.generate(ask("count-1"))]) == list(range(5))
    pair.cores[0] = ScriptedCore(pair.endpoints[0], instance_id="again")
    await until(lambda: pair.client.clients[0].frames.connected)
    async with aclosing(pair.client.generate(ask("hang-1"))) as one:
        await anext(one)
        async with aclosing(pair.client.generate(ask("hang-2"))) as two:
            await anext(two)
            assert all(core.open_requests == 1 for core in pair.cores)


async def test_one_core_is_enough_to_be_ready(pair):
    pair.cores[1].stop()
    await pair.client.wait_ready(20.0)
    assert (await pair.client.model_info()).instance_id == "a"
    assert (await pair.client.tokenizer_files()).files == TOKENIZER_FILES
    assert (await pair.client.load()).running_requests == 3


async def test_the_load_is_the_sum_of_those_that_answer(pair):
    await pair.all_connected()
    assert (await pair.client.load()).running_requests == 6


async def test_without_any_core_a_request_is_unavailable_after_the_connect_timeout(pair):
    for core in pair.cores:
        core.stop()
    client = pair.new_client(0.5)
    with pytest.raises(EngineError) as caught:
        [event async for event in client.generate(ask("count-1"))]
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    await client.close()


async def test_cores_of_different_models_are_refused(pair, monkeypatch):
    await pair.all_connected()
    answer = pair.cores[1].script.answer

    def lie(call):
        for result in answer(call):
            result.response = result.response.replace(b"scripted", b"an-other")
            yield result

    monkeypatch.setattr(pair.cores[1].script, "answer", lie)
    with pytest.raises(EngineError, match="different models") as caught:
        await pair.client.model_info()
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_cancelling_reaches_the_core_that_has_it(pair):
    await pair.all_connected()
    events = []
    async for event in pair.client.generate(ask("hang-1")):
        events.append(event)
        if event.HasField("started"):
            await pair.client.cancel("hang-1")
    assert kinds(events) == ["started", "finished"]
