"""Who gives up is done with, and so is the engine."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import grpc
import pytest

from rhizome.engine.v1.generate_pb2 import FINISH_REASON_CANCELLED
from rhizome_testing.engine_ways import ask, kinds
from rhizome_transport.errors import EngineError


async def test_closing_the_generator_cancels_in_the_engine(wired, until):
    async with aclosing(wired.client.generate(ask("hang-1"))) as events:
        async for event in events:
            assert event.HasField("started")
            break
    await until(lambda: wired.core.script.cancels == ["hang-1"])
    await until(lambda: wired.core.open_requests == 0)


async def test_cancelling_the_reading_task_cancels_in_the_engine(wired, until):
    async def read() -> None:
        async for _ in wired.client.generate(ask("hang-2")):
            pass

    task = asyncio.create_task(read())
    await until(lambda: wired.core.open_requests == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: wired.core.script.cancels == ["hang-2"])


async def test_a_cancelled_request_still_gets_its_finished_event(wired):
    events = []
    async for event in wired.client.generate(ask("hang-3")):
        events.append(event)
        if event.HasField("started"):
            await wired.client.cancel("hang-3")
            await wired.client.cancel("nobody")
    assert kinds(events) == ["started", "finished"]
    assert events[-1].finished.reason == FINISH_REASON_CANCELLED


async def test_a_finished_request_is_not_cancelled(wired, until):
    [event async for event in wired.client.generate(ask("count-2"))]
    [event async for event in wired.client.generate(ask("count-3"))]
    assert wired.core.script.cancels == []


async def test_an_id_is_free_again_once_its_cancelled_request_ended(wired, until):
    stream = wired.client.generate(ask("hang-7"))
    await anext(stream)
    await stream.aclose()
    with pytest.raises(EngineError) as caught:
        await anext(wired.client.generate(ask("hang-7")))
    assert caught.value.code is grpc.StatusCode.ALREADY_EXISTS
    await until(lambda: wired.client.frames.open_requests == 0)
    async with aclosing(wired.client.generate(ask("hang-7"))) as events:
        assert (await anext(events)).HasField("started")


async def test_the_engine_notices_that_a_client_vanished(wired, until):
    stream = wired.client.generate(ask("hang-6"))
    await anext(stream)
    await wired.client.close()
    await until(lambda: wired.core.open_requests == 0)
    assert wired.core.script.lost + wired.core.script.cancels == ["hang-6"]
    with pytest.raises(EngineError):
        await anext(stream)
