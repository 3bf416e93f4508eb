"""How requests are spread over time: closed loop, waves and open loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio
from tests.launcher.bench.conftest import Behaviour, PuppetServer, eventually

from rhizome_launcher.bench.client import OpenAIClient
from rhizome_launcher.bench.load import Load


@pytest_asyncio.fixture
async def client(puppet: PuppetServer) -> AsyncIterator[OpenAIClient]:
    async with OpenAIClient(puppet.url, endpoint="chat", api_key="", timeout_s=30) as opened:
        yield opened


def bodies(client: OpenAIClient, count: int) -> list[bytes]:
    return [client.body(f"number {index}", "puppet", 4, {}) for index in range(count)]


async def test_a_closed_loop_keeps_so_many_open_and_sends_each_once(
    client: OpenAIClient, puppet: PuppetServer
) -> None:
    # One slow answer must not hold up the other streams: it comes after all others.
    others = asyncio.Event()
    puppet.behave = lambda index: Behaviour(first_s=0.02, after=others if index == 0 else None)
    load = Load(client)
    load.on_record = lambda record: others.set() if len(load.records) == 19 else None
    await load.closed_loop(bodies(client, 20), 3)
    assert puppet.most_open == 3
    assert sorted(body["messages"][0]["content"] for body in puppet.bodies) == sorted(
        f"number {index}" for index in range(20)
    )
    assert len(load.records) == load.sent == 20
    assert load.unfinished == 0
    assert not load.together
    assert all(record.ok for record in load.records)


async def test_streams_of_a_wave_wait_for_each_other(client: OpenAIClient, puppet: PuppetServer) -> None:
    arrived = [asyncio.Event() for _ in range(3)]

    def behave(index: int) -> Behaviour:
        if index in (3, 7, 9):  # the last of each wave, which lets all of it go on
            arrived[index // 4].set()
        return Behaviour(after=arrived[index // 4])

    puppet.behave = behave
    load = Load(client)
    await load.in_waves(bodies(client, 10), 4)
    assert [len(wave) for wave in load.waves] == [4, 4, 2]
    for before, after in zip(load.waves, load.waves[1:], strict=False):
        assert max(r.ended_s for r in before) <= min(r.started_s for r in after)
    assert puppet.most_open == 4
    assert load.together


async def test_an_open_loop_does_not_wait_for_answers(client: OpenAIClient, puppet: PuppetServer) -> None:
    all_asked = asyncio.Event()

    def behave(index: int) -> Behaviour:
        if index == 9:
            all_asked.set()
        return Behaviour(after=all_asked)

    puppet.behave = behave
    load = Load(client)
    arrivals = [0.02 * index for index in range(10)]
    await load.open_loop(bodies(client, 10), arrivals)
    assert puppet.most_open == 10
    starts = sorted(record.started_s for record in load.records)
    # Requests count from when they were due, exactly.
    assert all(abs(start - starts[0] - due) < 1e-9 for start, due in zip(starts, arrivals, strict=True))


async def test_a_cancelled_load_keeps_what_it_has(client: OpenAIClient, puppet: PuppetServer) -> None:
    puppet.behave = lambda index: Behaviour(first_s=0.0 if index < 4 else 60.0)
    seen = asyncio.Event()
    load = Load(client)
    load.on_record = lambda record: seen.set() if len(load.records) == 4 else None
    task = asyncio.create_task(load.closed_loop(bodies(client, 50), 2))
    await asyncio.wait_for(seen.wait(), 20)
    await eventually(lambda: load.unfinished == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert len(load.records) == 4 and all(record.ok for record in load.records)
    assert load.unfinished == 2
