"""The called side of Connect: who may begin, how a stream ends, and that conversations are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from rhizome.engine.v1.frames_pb2 import (
    Call,
    Cancel,
    ClientFrame,
    Credit,
    EngineFrame,
    Hello,
    Ping,
    RequestEvent,
    Submit,
)
from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome_transport.channel import ENGINE_SERVICE, PROTOCOL_VERSION, open_channel
from rhizome_transport.connect_server import ConnectServer
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_queue import FrameQueue
from rhizome_transport.grpc_server import GrpcServer


class Echo:
    """Sends back what is submitted, as a frame of events; nothing is against its rules."""

    def __init__(self, name: str, queue: FrameQueue) -> None:
        self.name = name
        self.queue = queue
        self.closed = False
        self.cancelled: list[str] = []
        self.idle = asyncio.Event()
        self.idle.set()

    def submit(self, payload: bytes) -> None:
        submit = Submit.FromString(payload)
        if submit.request.model == "nothing":
            raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, "ask for something")
        event = RequestEvent(request_id=submit.request.request_id)
        self.queue.put_events(EngineFrame(events=[event]).SerializeToString())

    def cancel(self, cancel: Cancel) -> None:
        self.cancelled.append(cancel.request_id)

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


def submit(request_id: str, model: str = "") -> ClientFrame:
    return ClientFrame(submit=Submit(request=GenerateRequest(request_id=request_id, model=model)))


async def read(call: Any) -> EngineFrame:
    return EngineFrame.FromString(await call.read())


async def test_greets_and_carries_frames_both_ways(served):
    call = await served.call(HELLO, ping(7))
    assert (await read(call)).welcome.instance_id == "instance"
    assert (await read(call)).pong.nonce == 7
    assert [echo.name for echo in served.echoes] == ["tester"]
    assert served.connect.conversations == set(served.echoes)


async def test_hands_on_what_is_asked_and_keeps_to_the_credit(served, until):
    call = await served.call(HELLO, submit("r1"), submit("r2"), ClientFrame(cancel=Cancel(request_id="r2")))
    assert (await read(call)).HasField("welcome")
    assert (await read(call)).events[0].request_id == "r1"
    await until(lambda: served.echoes[0].cancelled == ["r2"])
    await call.write(ping(1).SerializeToString())
    assert (await read(call)).pong.nonce == 1
    await call.write(ClientFrame(credit=Credit(frames=1)).SerializeToString())
    assert (await read(call)).events[0].request_id == "r2"


async def test_a_submit_beside_other_fields_is_what_protobuf_says(served):
    frame = submit("r1").SerializeToString() + ping(3).SerializeToString()  # of a oneof the last one counts
    call = await served.call(HELLO, frame)
    await read(call)
    assert (await read(call)).pong.nonce == 3


async def test_calls_are_refused_with_advice(served):
    call = await served.call(HELLO, ClientFrame(call=Call(call_id="c1", method="GetLoad")))
    await read(call)
    (result,) = (await read(call)).call_results
    assert (result.call_id, result.final) == ("c1", True)
    assert EngineError.from_status(result.status).code is grpc.StatusCode.UNIMPLEMENTED


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


@pytest.mark.parametrize(
    "frame",
    [submit("r1", "nothing"), HELLO, b"\xff\xff", b"\x12\x03\x0a\x05a"],
    ids=["refused", "a second hello", "noise", "a broken submit"],
)
async def test_what_breaks_the_contract_ends_the_stream(served, frame):
    call = await served.call(HELLO, frame)
    await read(call)
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert served.echoes[0].closed


@pytest.mark.parametrize(
    ("first", "code", "text"),
    [
        (b"\xff\xff", "INVALID_ARGUMENT", "no ClientFrame"),
        (ping(1), "INVALID_ARGUMENT", "must be Hello"),
        (ClientFrame(hello=Hello(protocol_version=9)), "FAILED_PRECONDITION", f"protocol {PROTOCOL_VERSION}"),
    ],
    ids=["noise", "no hello", "another version"],
)
async def test_a_stream_begins_with_a_hello(served, first, code, text):
    call = await served.call(first)
    assert (await call.code()).name == code
    assert text in await call.details()
    assert not served.echoes
