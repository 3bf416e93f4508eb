"""One scripted engine, reached over either transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from rhizome_testing.scripted_engine import ScriptedCore
from rhizome_testing.scripted_front import ScriptedFront
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.zmq_client import ZmqEngineClient

Until = Callable[[Callable[[], bool]], Awaitable[None]]


@dataclass
class Wired:
    """A client and the scripted core it talks to."""

    client: GrpcEngineClient | ZmqEngineClient
    core: ScriptedCore
    transport: str


@pytest.fixture
def endpoint() -> Iterator[str]:
    # pytest's own directories are too long for a socket's path and not private.
    with TemporaryDirectory(prefix="rz-") as directory:
        yield f"ipc://{Path(directory) / 'run' / 'core.sock'}"


@pytest.fixture
def until() -> Until:
    async def poll(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - any condition
                await asyncio.sleep(0.005)

    return poll


@pytest.fixture
def connect_timeout_s() -> float:
    """How long a client tries; those who want to see it give up replace this."""
    return 20.0


@pytest.fixture(params=["grpc", "zeromq"])
async def wired(
    request: pytest.FixtureRequest, endpoint: str, connect_timeout_s: float
) -> AsyncIterator[Wired]:
    core = ScriptedCore(endpoint)
    front: ScriptedFront | None = None
    client: GrpcEngineClient | ZmqEngineClient
    if request.param == "grpc":
        front = ScriptedFront(endpoint)
        client = GrpcEngineClient(await front.start(), peer_name="test", connect_timeout_s=connect_timeout_s)
    else:
        client = ZmqEngineClient(endpoint, peer_name="test", connect_timeout_s=connect_timeout_s)
    wired = Wired(client, core, request.param)
    try:
        yield wired
    finally:
        await client.close()
        if front is not None:
            await front.stop()
        wired.core.stop()
