"""The called side of Connect: who may begin, how a stream ends, and that conversations are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from rhizome.engine.v1.frames_pb2 import ClientFrame, EngineFrame, Hello, Ping, Pong
from rhizome_transport.channel import ENGINE_SERVICE, PROTOCOL_VERSION, open_channel
from rhizome_transport.connect_server import ConnectServer, parse_client_frame
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_queue import FrameQueue
from rhizome_transport.grpc_server import GrpcServer


class Echo:
    """Answers pings; a ping of 13 is against its rules."""

    def __init__(self, name: str, queue: FrameQueue) -> None:
        self.name = name
        self.queue = queue
        self.closed = False
        self.idle = asyncio.Event()
        self.idle.set()

    def handle(self, payload: bytes) -> None:
        nonce = parse_client_frame(payload).ping.nonce
        if nonce == 13:
            raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, "not 13")
        self.queue.put_control(EngineFrame(pong=Pong(nonce=nonce)).SerializeToString())

    def close(self) -> None:
        self.closed = True


class Served:
    """A server of echoes, and calls to it."""

    def __init__(self) -> None:
        self.echoes: list[Echo] = []
        self.connect = ConnectServer(self._begin, "instance")
        self._server = GrpcServer("127.0.0.1:0", service_names=(ENGINE_SERVICE,))
        self._server.add_handlers(ENGINE_SERVICE, {"Connect": self.connect.handler()})

    async def start(self) -> None:
        self._channel = open_channel(f"127.0.0.1:{await self._server.start()}")

    async def stop(self) -> None:
        await self._channel.close()
        await self._server.drain_and_stop(0)

    async def call(self, *frames: ClientFrame | bytes) -> Any:
        call = self._channel.stream_stream(f"/{ENGINE_SERVICE}/Connect")()
        for frame in frames:
            await call.write(frame if isinstance(frame, bytes) else frame.SerializeToString())
        return call

    def _begin(self, name: str, queue: FrameQueue) -> Echo:
        self.echoes.append(Echo(name, queue))
        return self.echoes[-1]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    await served.start()
    yield served
    await served.stop()


HELLO = ClientFrame(hello=Hello(protocol_version=PROTOCOL_VERSION, peer_name="tester", initial_credit=1))


def ping(nonce: int) -> ClientFrame:
    return ClientFrame(ping=Ping(nonce=nonce))


async def read(call: Any) -> EngineFrame:
    return EngineFrame.FromString(await call.read())


async def test_greets_and_carries_frames_both_ways(served):
    call = await served.call(HELLO, ping(7))
    assert (await read(call)).welcome.instance_id == "instance"
    assert (await read(call)).pong.nonce == 7
    assert [echo.name for echo in served.echoes] == ["tester"]
    assert served.connect.conversations == set(served.echoes)


async def test_a_peer_that_says_nothing_more_gets_the_rest_and_the_end(served):
    call = await served.call(HELLO)
    await read(call)
    (echo,) = served.echoes
    echo.idle.clear()
    await call.done_writing()
    echo.queue.put_events(b"\x08\x01")
    assert (await read(call)).step == 1
    echo.idle.set()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK
    assert echo.closed and not served.connect.conversations


async def test_a_drain_ends_a_stream_once_nothing_is_open(served):
    busy = await served.call(HELLO)
    await read(busy)
    served.echoes[0].idle.clear()
    calm = await served.call(HELLO)
    await read(calm)
    served.connect.drain()
    assert await calm.code() is grpc.StatusCode.OK
    await busy.write(ping(5).SerializeToString())
    assert (await read(busy)).pong.nonce == 5
    served.echoes[0].idle.set()
    assert await busy.code() is grpc.StatusCode.OK


async def test_a_conversation_is_told_that_its_peer_vanished(served, until):
    call = await served.call(HELLO)
    await read(call)
    call.cancel()
    await until(lambda: served.echoes[0].closed)
    assert not served.connect.conversations


async def test_what_a_conversation_refuses_ends_its_stream(served):
    call = await served.call(HELLO, ping(13))
    await read(call)
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert served.echoes[0].closed


@pytest.mark.parametrize(
    ("first", "code", "text"),
    [
        (b"\xff\xff", "INVALID_ARGUMENT", "no ClientFrame"),
        (ping(1), "INVALID_ARGUMENT", "must be Hello"),
        (ClientFrame(hello=Hello(protocol_version=9)), "FAILED_PRECONDITION", "protocol 1"),
    ],
    ids=["noise", "no hello", "another version"],
)
async def test_a_stream_begins_with_a_hello(served, first, code, text):
    call = await served.call(first)
    assert (await call.code()).name == code
    assert text in await call.details()
    assert not served.echoes
