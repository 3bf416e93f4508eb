"""A DEALER that knows when the other side is gone: libzmq's, and the one of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import pytest
import zmq

from rhizome.engine.v1.frames_pb2 import CallResult, ClientFrame, EngineFrame, Hello
from rhizome_transport.channel import PROTOCOL_VERSION
from rhizome_transport.core_connection import CoreConnection
from rhizome_transport.dealer import DealerConnection
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_server import FrameServer
from rhizome_transport.open_core import open_core

HELLO = ClientFrame(hello=Hello(protocol_version=PROTOCOL_VERSION, initial_credit=1)).SerializeToString()


@pytest.fixture(params=[DealerConnection, open_core])
def connect(request, endpoint):
    context = zmq.Context()
    yield lambda: request.param(context, endpoint)
    context.destroy(linger=0)


async def lost(awaitable) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await asyncio.wait_for(awaitable, 5)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    return caught.value


async def test_nobody_listening_shows_at_once(connect: Callable[[], CoreConnection]):
    connection = connect()
    await lost(connection.receive())
    assert connection.broken
    await lost(connection.send(HELLO))
    connection.close()
    connection.close()


async def test_everything_sent_before_the_end_is_received_and_then_the_end(connect, endpoint):
    server = FrameServer(endpoint)
    connection = connect()
    await connection.send(HELLO)
    while not server.peers:
        server.poll(20)
    (peer,) = server.peers
    for number in range(500):
        server.reply(peer, CallResult(call_id=str(number), response=b"x" * 1000))
        server.flush(number)
    await asyncio.to_thread(server.close)  # which waits for readers, and one of them is on this loop

    answers: list[str] = []
    with pytest.raises(EngineError):
        while True:
            frame = EngineFrame.FromString(await asyncio.wait_for(connection.receive(), 5))
            answers += [result.call_id for result in frame.call_results]
    assert answers == [str(number) for number in range(500)]
    connection.close()


async def test_a_cancelled_receive_loses_nothing(connect, endpoint):
    server = FrameServer(endpoint)
    connection = connect()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await connection.receive()
    await connection.send(HELLO)
    while not server.peers:
        server.poll(20)
    frame = EngineFrame.FromString(await asyncio.wait_for(connection.receive(), 5))
    assert frame.welcome.instance_id == server.instance_id
    connection.close()
    server.close()


async def test_too_many_sockets_are_an_engine_error_and_leave_none_behind(endpoint):
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 2)  # one connection needs three
    try:
        for _ in range(2):
            with pytest.raises(EngineError, match="no further connection") as caught:
                DealerConnection(context, endpoint)
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    finally:
        context.destroy(linger=0)
