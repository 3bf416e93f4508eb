"""A reader that does not keep up gets fewer and longer pieces, and holds up nobody."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from rhizome.engine.v1.frames_pb2 import ClientFrame, Credit, EngineFrame, Hello, Submit
from rhizome_testing.engine_ways import ask, tokens_of
from rhizome_transport.channel import PROTOCOL_VERSION
from rhizome_transport.frame_connection import FrameConnection


async def test_a_slow_reader_gets_merged_deltas_and_loses_none(wired):
    events = []
    async with aclosing(wired.client.generate(ask("flood-1", 500))) as stream:
        async for event in stream:
            events.append(event)
            if len(events) == 1:
                # Another request runs to its end meanwhile: nobody waits for the slow reader.
                [other async for other in wired.client.generate(ask("count-7", 50))]
    assert tokens_of(events) == list(range(500))
    assert len(events) <= 4


async def test_more_frames_than_the_first_credit_arrive(wired):
    events = [event async for event in wired.client.generate(ask("count-8", 400))]
    assert tokens_of(events) == list(range(400))


async def read_events(connection: FrameConnection, request_id: str) -> tuple[list[int], int]:
    """Grant a frame at a time until the request ended; its tokens, and in how many frames they came."""
    tokens: list[int] = []
    frames, ended = 0, False
    while not ended:
        frame = EngineFrame.FromString(await asyncio.wait_for(connection.receive(), 20))
        if frame.events:
            frames += 1
            connection.post(ClientFrame(credit=Credit(frames=1)).SerializeToString())
        for event in frame.events:
            assert event.request_id == request_id
            tokens += event.response.delta.token_ids
            ended |= event.final
    return tokens, frames


async def test_who_stops_reading_holds_up_neither_the_engine_nor_others(wired, until):
    connection = await wired.connect()
    hello = Hello(protocol_version=PROTOCOL_VERSION, peer_name="sleepy", initial_credit=1)
    connection.post(ClientFrame(hello=hello).SerializeToString())
    connection.post(ClientFrame(submit=Submit(request=ask("count-sleepy", 300))).SerializeToString())
    await until(lambda: wired.core.open_requests == 1)
    # Nothing of it is read, and the engine takes a step for each of its tokens all the same.
    began = wired.core.steps
    assert tokens_of([event async for event in wired.client.generate(ask("count-other", 50))]) == list(
        range(50)
    )
    await until(lambda: wired.core.steps >= began + 310)
    assert wired.core.open_requests == 0
    assert wired.core.max_waiting_events <= 3
    tokens, frames = await read_events(connection, "count-sleepy")
    assert tokens == list(range(300))
    # Beside the first one and the rest, what a proxy or a front had taken before it stopped, too.
    assert frames <= 300 if wired.way.startswith("proxy") else frames <= 4
    connection.close()


async def test_a_hundred_requests_of_who_does_not_read_wait_merged(wired, until):
    connection = await wired.connect()
    hello = Hello(protocol_version=PROTOCOL_VERSION, peer_name="sleepy", initial_credit=1)
    connection.post(ClientFrame(hello=hello).SerializeToString())
    for number in range(100):
        connection.post(ClientFrame(submit=Submit(request=ask(f"count-{number}", 100))).SerializeToString())
    await until(lambda: len(wired.core.script.submits) == 100 and wired.core.open_requests == 0)
    assert wired.core.max_waiting_events <= 300
    connection.close()
