"""A client that hangs up costs nothing a second later, whatever its request was waiting for."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from tests.gateway.conftest import RunningGateway, eventually, running_gateway

from rhizome.engine.v1.engine_service_pb2 import GetLoadRequest
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.load_pb2 import Load
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.running_stack import DEMO_MODEL
from rhizome_testing.time_bounds import assert_within_async

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

REPETITIONS = 20
FREED_WITHIN_S = 1.0
MODEL = "demo"
WORDS_OF_A_LONG_PROMPT = 900
PASSING = ("Wire._call", "Wire._carry", "RequestResponseCycle.run_asgi", "EngineClient.model_info")
"""Tasks of the test's own, and of answers to /ready."""


class Engine:
    """A real engine, seen past the gateway."""

    def __init__(self, process: EngineProcess, channel: grpc.aio.Channel) -> None:
        self.process = process
        self._stub: Any = EngineServiceStub(channel)

    async def load(self) -> Load:
        answer = await self._stub.GetLoad(GetLoadRequest(), timeout=30)
        load: Load = answer.load
        return load

    async def has(self, *, running: int, waiting: int = 0) -> bool:
        load = await self.load()
        return (load.running_requests, load.waiting_requests) == (running, waiting)

    async def is_free(self) -> bool:
        load = await self.load()
        return not (load.kv_pages_in_use or load.running_requests or load.waiting_requests)


class Wire:
    """Carries bytes between a gateway and an engine; while it is held, it takes calls and carries nothing."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._carries = asyncio.Event()
        self._carries.set()
        self._ends: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self.calls_held = 0

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.target = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    def hold(self) -> None:
        """Break what there is, and be silent from now on."""
        self.calls_held = 0
        self._carries.clear()
        for end in self._ends:
            end.transport.abort()

    def release(self) -> None:
        self._carries.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.calls_held += not self._carries.is_set()
        self._start(self._call(reader, writer))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._carries.wait()
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._start(self._carry(reader, far_writer))
        await self._carry(far_reader, writer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.add(writer)
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()
            self._ends.discard(writer)


class Client:
    """One request on a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def ask(cls, gateway: RunningGateway, **fields: Any) -> Client:
        host, port = gateway.url.removeprefix("http://").split(":")
        client = cls(*await asyncio.open_connection(host, int(port)))
        body = json.dumps({"model": MODEL, "ignore_eos": True, "temperature": 0, **fields}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        client._writer.write(head.encode() + body)
        await client._writer.drain()
        return client

    async def reads(self, events: int) -> None:
        """Wait for some events of a stream."""
        for _ in range(events):
            await asyncio.wait_for(self._reader.readuntil(b"data: "), 30)

    def hang_up(self, *, rudely: bool) -> None:
        """Close the connection, or reset it."""
        if rudely:
            self._writer.transport.abort()
        else:
            self._writer.close()


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    # One request at a time, so that a second one queues; small steps, so that a long prompt takes a while.
    arguments = ("--served-model-name", MODEL, "--max-batch-size", "1", "--max-step-tokens", "16")
    with EngineProcess(DEMO_MODEL, tmp_path_factory.mktemp("engine"), *arguments) as process:
        process.wait_serving()
        yield process


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(process: EngineProcess) -> AsyncIterator[Engine]:
    async with grpc.aio.insecure_channel(process.target) as channel:
        yield Engine(process, channel)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wire(process: EngineProcess) -> AsyncIterator[Wire]:
    async with Wire(process.port) as wire:
        yield wire


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(wire: Wire) -> AsyncIterator[RunningGateway]:
    async with running_gateway(wire.target) as gateway:
        await gateway.becomes_ready()
        yield gateway


def open_requests(gateway: RunningGateway) -> int:
    runtime = gateway.server._gateway._runtime
    assert runtime is not None
    return runtime.guard.open_requests


async def seconds_until(condition: Callable[[], Awaitable[bool] | bool], within_s: float = 20) -> float:
    started = time.monotonic()
    await eventually(condition, within_s)
    return time.monotonic() - started


async def settle(gateway: RunningGateway, engine: Engine) -> Counter[str]:
    """Serve a small request, so that what stays open is open; return what tasks there are then."""
    client = await Client.ask(gateway, prompt="Hello", max_tokens=2, stream=True)
    await client.reads(3)
    client.hang_up(rudely=False)
    await eventually(engine.is_free)
    await eventually(lambda: open_requests(gateway) == 0)
    return tasks()


def tasks() -> Counter[str]:
    """The kinds of tasks that run, with the gateway's but without the test's."""
    kinds = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return Counter(kind for kind in kinds if kind not in PASSING)


async def nothing_is_left(gateway: RunningGateway, engine: Engine, before: Counter[str]) -> None:
    """No request is open, and there are no more tasks than before."""
    await settle(gateway, engine)

    def as_before() -> bool:
        return not tasks() - before

    try:
        await eventually(as_before)
    except TimeoutError:
        raise AssertionError(f"left: {tasks() - before}") from None


def report(window: str, taken: list[float]) -> None:
    print(f"\n{window}: freed after {statistics.median(taken):.3f} s, at most {max(taken):.3f} s")


async def test_in_the_queue(gateway: RunningGateway, engine: Engine) -> None:
    before, taken = await settle(gateway, engine), []

    async def leave(repetition: int) -> float:
        occupant = await Client.ask(gateway, prompt="Once", max_tokens=1900, stream=True)
        await occupant.reads(2)
        waiting = await Client.ask(gateway, prompt="Hello", max_tokens=1900, stream=bool(repetition % 2))
        await eventually(lambda: engine.has(running=1, waiting=1))
        waiting.hang_up(rudely=repetition % 4 < 2)
        taken.append(await seconds_until(lambda: engine.has(running=1)))
        occupant.hang_up(rudely=True)
        taken.append(await seconds_until(engine.is_free))
        return max(taken[-2:])

    for repetition in range(REPETITIONS):
        await assert_within_async(FREED_WITHIN_S, partial(leave, repetition))
    report("queued", taken)
    await nothing_is_left(gateway, engine, before)


async def test_while_the_gateway_connects_to_the_engine(
    gateway: RunningGateway, engine: Engine, wire: Wire
) -> None:
    before, taken, forgotten = await settle(gateway, engine), [], []

    async def leave(repetition: int) -> float:
        wire.hold()
        await eventually(lambda: wire.calls_held > 0)  # it tries to connect again
        client = await Client.ask(gateway, prompt="Hello", max_tokens=1900, stream=bool(repetition % 2))
        await eventually(lambda: open_requests(gateway) == 1)
        client.hang_up(rudely=repetition % 4 < 2)
        try:
            forgotten.append(await seconds_until(lambda: open_requests(gateway) == 0))
        finally:
            wire.release()
        taken.append(await seconds_until(engine.is_free))
        await gateway.becomes_ready()
        return max(forgotten[-1], taken[-1])

    for repetition in range(REPETITIONS):
        await assert_within_async(FREED_WITHIN_S, partial(leave, repetition))
    report("connecting, in the gateway", forgotten)
    report("connecting", taken)
    await nothing_is_left(gateway, engine, before)


async def test_before_the_first_token(gateway: RunningGateway, engine: Engine) -> None:
    before, taken, held, unanswered = await settle(gateway, engine), [], 0, 0

    async def leave(repetition: int) -> float:
        nonlocal held, unanswered
        generated = (await engine.load()).totals.generated_tokens
        prompt = f"{len(taken)} " + "lamp " * WORDS_OF_A_LONG_PROMPT  # nothing of it is cached
        client = await Client.ask(gateway, prompt=prompt, max_tokens=100, stream=bool(repetition % 2))
        await eventually(lambda: engine.has(running=1))
        held += (await engine.load()).kv_pages_in_use > 0
        client.hang_up(rudely=repetition % 4 < 2)
        taken.append(await seconds_until(engine.is_free))
        unanswered += (await engine.load()).totals.generated_tokens == generated
        return taken[-1]

    # More of them, where this process comes too late for the window.
    while len(taken) < REPETITIONS or (min(held, unanswered) <= REPETITIONS // 2 and len(taken) < 100):
        await assert_within_async(FREED_WITHIN_S, partial(leave, len(taken)))
    report(f"before the first token ({unanswered} of {len(taken)} had none)", taken)
    assert min(held, unanswered) > REPETITIONS // 2  # else this is not the window
    await nothing_is_left(gateway, engine, before)


async def test_while_it_streams(gateway: RunningGateway, engine: Engine) -> None:
    before, taken = await settle(gateway, engine), []

    async def leave(repetition: int) -> float:
        client = await Client.ask(gateway, prompt="Once", max_tokens=1900, stream=True)
        await client.reads(2 + repetition)
        assert (await engine.load()).kv_pages_in_use > 0
        client.hang_up(rudely=bool(repetition % 2))
        taken.append(await seconds_until(engine.is_free))
        return taken[-1]

    for repetition in range(REPETITIONS):
        await assert_within_async(FREED_WITHIN_S, partial(leave, repetition))
    report("streaming", taken)
    await nothing_is_left(gateway, engine, before)
