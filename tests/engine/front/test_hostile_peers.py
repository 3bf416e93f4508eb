"""Clients that mean harm, over gRPC, and what others notice of them: a little, and never an error.

Each test does one kind of harm while somebody else asks something, and then looks that the engine is whole:
the same core, no page in use, no stream left over.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest

from rhizome.engine.v1 import engine_service_pb2 as messages
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.frames_pb2 import Call, Cancel, ClientFrame, Credit, EngineFrame, Hello, Ping, Submit
from rhizome.engine.v1.generate_pb2 import FINISH_REASON_LENGTH, GenerateRequest
from rhizome_engine.core.orphan_watch import OrphanWatch
from rhizome_engine.core_record import FRONT_PEER_NAME
from rhizome_engine.front.stream_limits import StreamLimits
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.hash_core import token_request
from rhizome_testing.long_tests import takes_long
from rhizome_transport.channel import ENGINE_SERVICE, PROTOCOL_VERSION, open_channel
from rhizome_transport.dealer import RELAYED_IDENTITY_PREFIX
from rhizome_transport.errors import EngineError, from_rpc_error
from rhizome_transport.frame_server import Peer
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.outbox import Outbox

MIB = 1024 * 1024
MANY_CREDITS = 2**32 - 1
TOO_MANY = "TOO_MANY_STREAMS"
UNTOLD = "untold"
"""What the client's own gRPC makes of a stream that ended while it wrote to it."""


@pytest.fixture
async def victim(shared_engine: EngineProcess) -> AsyncIterator[Callable[[], Any]]:
    """Asks something as an honest tenant of its own; afterwards the engine must be as it was."""
    core = shared_engine.core()
    client = GrpcEngineClient(shared_engine.target, peer_name="honest")

    async def ask() -> None:
        request = token_request([5, 6, 7], 4)
        request.tenant = "honest"
        async with asyncio.timeout(60):
            events = [event async for event in client.generate(request)]
        assert events[-1].finished.reason == FINISH_REASON_LENGTH

    await ask()
    yield ask
    await ask()
    await client.close()
    assert shared_engine.core().pid == core.pid, "the core was started anew"
    async with grpc.aio.insecure_channel(shared_engine.target) as channel:
        async with asyncio.timeout(60):
            while True:
                load = (await EngineServiceStub(channel).GetLoad(messages.GetLoadRequest())).load
                if not (load.kv_pages_in_use or load.running_requests or load.waiting_requests):
                    break
                await asyncio.sleep(0.05)


class Raw:
    """A `Connect` stream that says what it likes."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        call: Any = channel.stream_stream(f"/{ENGINE_SERVICE}/Connect")
        self.call = call()

    async def say(self, **frame: Any) -> None:
        await self.call.write(ClientFrame(**frame).SerializeToString())

    async def hello(self, credit: int = 64) -> None:
        await self.say(
            hello=Hello(protocol_version=PROTOCOL_VERSION, peer_name="hostile", initial_credit=credit)
        )

    async def frames_until(self, done: Callable[[EngineFrame], bool]) -> list[EngineFrame]:
        frames: list[EngineFrame] = []
        async with asyncio.timeout(60):
            while not (frames and done(frames[-1])):
                frames.append(EngineFrame.FromString(await self.call.read()))
        return frames


@pytest.fixture
async def channel(shared_engine: EngineProcess) -> AsyncIterator[grpc.aio.Channel]:
    async with open_channel(shared_engine.target) as one:
        yield one


@pytest.fixture
async def raw(channel: grpc.aio.Channel) -> AsyncIterator[Raw]:
    one = Raw(channel)
    await one.hello()
    yield one
    one.call.cancel()


async def test_a_flood_of_requests_is_refused_but_for_its_share(raw: Raw, victim: Any) -> None:
    """A queue full of one peer's requests still takes another's. None is short enough to make room."""
    exhausted, cancelled = (
        code.value[0] for code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)
    )
    ends: dict[str, int] = {}

    async def hear(enough: Callable[[], bool]) -> None:
        while not enough():
            frame = EngineFrame.FromString(await asyncio.wait_for(raw.call.read(), 60))
            for event in frame.events:
                if event.final:
                    assert event.request_id not in ends, "two ends of one request"
                    ends[event.request_id] = event.status.code
            if frame.events:
                await raw.say(credit=Credit(frames=1))

    names = [f"r{number}" for number in range(1000)]
    for name in names:
        await raw.say(submit=Submit(request=token_request([1, 2, 3], 400, name)))
    await victim()
    await hear(lambda: exhausted in ends.values())
    for name in names:
        await raw.say(cancel=Cancel(request_id=name))
    await hear(lambda: len(ends) == len(names))
    counts = Counter(ends.values())
    assert 0 < counts[exhausted] < len(names) and set(counts) <= {0, exhausted, cancelled}, counts


async def test_cancels_of_what_does_not_exist_are_ignored(raw: Raw, victim: Any) -> None:
    for _ in range(5_000):
        await raw.call.write(ClientFrame(cancel=Cancel(request_id="x" * 40)).SerializeToString())
    await victim()
    await raw.say(ping=Ping(nonce=7))
    await raw.frames_until(lambda frame: frame.pong.nonce == 7)


@takes_long
async def test_giant_frames_end_their_own_stream(channel: grpc.aio.Channel, victim: Any) -> None:
    one = Raw(channel)
    await one.hello()
    huge = GenerateRequest(request_id="huge")
    huge.token_ids.ids.extend([1] * (17 * MIB))
    await one.say(submit=Submit(request=huge))
    await victim()
    with pytest.raises(grpc.aio.AioRpcError, match="at most 16777216") as ended:
        await one.frames_until(lambda _: False)
    assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@takes_long
async def test_large_prompts_without_pause_are_refused_one_by_one(raw: Raw, victim: Any) -> None:
    large = GenerateRequest(request_id="large")
    large.token_ids.ids.extend([1] * (4 * MIB))
    frame = ClientFrame(submit=Submit(request=large)).SerializeToString()
    for _ in range(20):
        await raw.call.write(frame)
    await victim()
    frames = await raw.frames_until(lambda frame: bool(frame.events))
    status = frames[-1].events[0].status
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0] and "at most" in status.message


async def test_bytes_that_are_no_frames_are_dropped(raw: Raw, victim: Any) -> None:
    for junk in (b"", b"\xff" * 100, b"\x12\x05abc", bytes(range(256))):
        await raw.call.write(junk)
    await victim()
    await raw.say(ping=Ping(nonce=9))
    await raw.frames_until(lambda frame: frame.pong.nonce == 9)


@pytest.mark.parametrize(
    "what", ["pings", pytest.param("tokenizers", marks=takes_long), pytest.param("tokens", marks=takes_long)]
)
async def test_who_never_reads_costs_bounded_memory(
    channel: grpc.aio.Channel, shared_engine: EngineProcess, victim: Any, what: str
) -> None:
    front, core = psutil.Process(shared_engine.pid), shared_engine.core()
    before = front.memory_info().rss + core.memory_info().rss
    one = Raw(channel)
    await one.hello(MANY_CREDITS)

    async def ask_for_ever() -> None:
        for number in range(100_000):
            if what == "pings":
                await one.say(ping=Ping(nonce=number))
            elif what == "tokenizers":
                await one.say(call=Call(call_id=str(number), method="GetTokenizer"))
            else:
                await one.say(submit=Submit(request=token_request([1, 2, 3], 300, f"r{number}")))

    asking = asyncio.create_task(ask_for_ever())
    await asyncio.wait({asking}, timeout=2)
    await victim()
    grown = front.memory_info().rss + core.memory_info().rss - before
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    one.call.cancel()
    assert grown < 200 * MIB, f"{grown / MIB:.0f} MiB more"


async def test_a_thousand_streams_are_carried_or_refused(shared_engine: EngineProcess, victim: Any) -> None:
    front = psutil.Process(shared_engine.pid)
    files = front.num_fds()
    async with open_channel(shared_engine.target) as channel:
        streams = [Raw(channel) for _ in range(1000)]
        # Those that are refused may be over before they can say anything.
        await asyncio.gather(*(one.hello() for one in streams), return_exceptions=True)
        codes = await asyncio.gather(*(first_answer(one) for one in streams))
        assert codes.count(None) == 511, Counter(codes)  # half of 1024 are for this host; the victim has one
        assert set(codes) <= {None, TOO_MANY, UNTOLD}
        assert await first_answer(Raw(channel)) == TOO_MANY  # it says nothing, so it is told for certain
        await victim()
        for one in streams:
            one.call.cancel()
    await asyncio.to_thread(
        shared_engine.wait_until, lambda: front.num_fds() <= files + 16, "the streams are gone"
    )


async def first_answer(one: Raw) -> str | None:
    """The reason for which a stream was refused, if it was."""
    try:
        assert isinstance(await asyncio.wait_for(one.call.read(), 60), bytes)
    except grpc.aio.AioRpcError as error:
        unsent = error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"
        return UNTOLD if unsent else from_rpc_error(error).reason
    return None


def test_no_host_has_more_than_half_of_the_streams() -> None:
    limits = StreamLimits(8, "Connect")
    with ExitStack() as stack:
        for number in range(4):
            stack.enter_context(limits.one_of(f"ipv4:10.0.0.1:{number}"))
        for greedy in ("ipv4:10.0.0.1:5", "ipv4:10.0.0.1:6"):
            with pytest.raises(EngineError, match="too many Connect"), limits.one_of(greedy):
                pass
        for number in range(4):
            stack.enter_context(limits.one_of(f"ipv6:[fd00::{number}]:50"))
        with pytest.raises(EngineError, match="too many Connect"), limits.one_of("ipv4:10.0.0.3:7"):
            pass
    assert limits.open == 0
    with limits.one_of("ipv4:10.0.0.1:5"):
        assert limits.open == 1


async def test_a_silent_stream_costs_no_socket(shared_engine: EngineProcess, victim: Any) -> None:
    front = psutil.Process(shared_engine.pid)
    async with open_channel(shared_engine.target) as channel:
        files = front.num_fds()
        streams = [Raw(channel) for _ in range(100)]
        await victim()
        assert front.num_fds() < files + 50
        for one in streams:
            one.call.cancel()


async def test_calls_with_too_much_in_them_are_refused(channel: grpc.aio.Channel, victim: Any) -> None:
    stub = EngineServiceStub(channel)
    cases: list[tuple[Any, str]] = [
        (stub.Tokenize(messages.TokenizeRequest(text="a" * (5 * MIB))), "text"),
        (stub.Detokenize(messages.DetokenizeRequest(token_ids=[1] * (5 * MIB))), "token_ids"),
        (stub.Abort(messages.AbortRequest(request_ids=["x"] * 20_000)), "request_ids"),
        (stub.Generate(GenerateRequest(text="a" * (5 * MIB))).read(), "text"),
    ]
    for call, param in cases:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        error = from_rpc_error(refused.value)
        assert (error.code, error.param) == (grpc.StatusCode.INVALID_ARGUMENT, param)
    await victim()


def test_nobody_from_outside_passes_for_the_front() -> None:
    """A peer of the front's name must not keep a core alive whose front is gone."""
    now = [0.0]
    watch = OrphanWatch(1.0, lambda: now[0])
    false_front = Peer(RELAYED_IDENTITY_PREFIX + b"1", FRONT_PEER_NAME, Outbox(1))
    now[0] = 2.0
    assert watch.is_orphaned([false_front])
    assert not watch.is_orphaned([Peer(b"1", FRONT_PEER_NAME, Outbox(1))])
