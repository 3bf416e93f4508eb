"""Cores and clients come and go in any order."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from rhizome.engine.v1.generate_pb2 import FINISH_REASON_CANCELLED
from rhizome_testing.engine_ways import ask, tokens_of
from rhizome_transport.errors import EngineError


async def test_a_core_that_dies_fails_open_requests_by_what_they_had_seen(wired, until):
    untouched: list[EngineError] = []

    async def wait_in_queue() -> None:
        try:
            [event async for event in wired.client.generate(ask("queue-2"))]
        except EngineError as error:
            untouched.append(error)

    waiting = asyncio.create_task(wait_in_queue())
    with pytest.raises(EngineError) as caught:
        async for _ in wired.client.generate(ask("hang-5")):
            await until(lambda: wired.core.open_requests == 2)
            wired.core.stop()
    await waiting
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.ABORTED, "ENGINE_LOST")
    assert untouched[0].code is grpc.StatusCode.UNAVAILABLE


async def test_reconnects_to_a_core_that_was_started_anew(direct, until):
    [event async for event in direct.client.generate(ask("count-9"))]
    assert direct.client.frames.instance_id == "core-1"
    direct.core.stop()
    await until(lambda: not direct.client.frames.connected)
    direct.restart("core-2")
    events = [event async for event in direct.client.generate(ask("count-10"))]
    assert tokens_of(events) == list(range(5))
    assert direct.client.frames.instance_id == "core-2"
    assert (await direct.client.model_info()).instance_id == "core-2"


@pytest.mark.parametrize("connect_timeout_s", [1.0])
async def test_without_a_core_a_request_is_unavailable_after_the_connect_timeout(direct):
    direct.core.stop()
    began = time.monotonic()
    with pytest.raises(EngineError) as caught:
        [event async for event in direct.client.generate(ask("count-11"))]
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert 0.9 < time.monotonic() - began < 3.0


async def test_who_is_going_away_keeps_what_it_has_and_the_next_request_goes_out_again(direct, until):
    old = direct.client.generate(ask("hang-15"))
    await anext(old)
    direct.core.script.draining = 1
    events = [event async for event in direct.client.generate(ask("count-16"))]
    assert tokens_of(events) == list(range(5))
    assert [one.request.request_id for one in direct.core.script.submits] == [
        "hang-15",
        "count-16",
        "count-16",
    ]
    assert direct.core.peers == 2
    assert direct.client.frames.open_requests == 1
    await direct.client.frames.cancel("hang-15")
    assert [kind async for kind in old][-1].finished.reason == FINISH_REASON_CANCELLED
    await until(lambda: direct.core.peers == 1)
    assert tokens_of([event async for event in direct.client.generate(ask("count-17"))]) == list(range(5))


async def test_refused_twice_by_who_is_going_away_is_the_answer(direct, until):
    direct.core.script.draining = 2
    with pytest.raises(EngineError) as caught:
        [event async for event in direct.client.generate(ask("count-18"))]
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert len(direct.core.script.submits) == 2
    assert direct.client.frames.open_requests == 0
    assert tokens_of([event async for event in direct.client.generate(ask("count-19"))]) == list(range(5))


async def test_closing_while_a_request_goes_out_again_loses_nothing(direct, until):
    direct.core.script.draining = 1
    stream = direct.client.generate(ask("hang-20"))
    waiting = asyncio.ensure_future(anext(stream))
    await until(lambda: direct.core.script.submits)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await until(lambda: direct.core.open_requests == 0 and direct.client.frames.open_requests == 0)


async def test_requests_are_served_again_after_every_restart(wired, until):
    for life in range(3):
        events = await wired.run(ask(f"count-{life}"))
        assert tokens_of(events) == list(range(5))
        wired.restart(f"core-{life + 2}")
    assert tokens_of(await wired.run(ask("count-last"))) == list(range(5))


async def test_a_client_that_is_started_anew_finds_the_core_as_it_was(wired, until):
    await wired.run(ask("count-1"))
    await wired.client.close()
    wired.client = wired.new_client()
    await wired.run(ask("count-2"))
    assert [one.request.request_id for one in wired.core.script.submits] == ["count-1", "count-2"]
