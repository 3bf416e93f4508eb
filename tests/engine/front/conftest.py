"""Real engines, front and core, on a small random checkpoint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from rhizome.engine.v1.engine_service_pb2 import GetLoadRequest
from rhizome_testing.checkpoints import write_llama_checkpoint
from rhizome_testing.engine_process import EngineProcess


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def shared_engine(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """One engine for all tests of a module that leave it as it was."""
    with EngineProcess(checkpoint, tmp_path_factory.mktemp("engine")) as engine:
        engine.wait_serving()
        yield engine


@pytest.fixture
def start_engine(checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., EngineProcess]]:
    """Start engines of one's own; they end with the test."""
    with ExitStack() as stack:

        def start(*arguments: str, port: int | None = None, model: Path = checkpoint) -> EngineProcess:
            environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
            engine = EngineProcess(model, tmp_path, *arguments, port=port, environment=environment)
            return stack.enter_context(engine)

        yield start


@pytest.fixture
async def channel(shared_engine: EngineProcess) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(shared_engine.target) as one:
        yield one


@pytest.fixture
def until_idle() -> Callable[[Any], Awaitable[None]]:
    """Waits until an engine, seen through its stub, has given back every page."""

    async def wait(stub: Any) -> None:
        deadline = time.monotonic() + 30
        while True:
            load = (await stub.GetLoad(GetLoadRequest())).load
            if load.kv_pages_in_use == 0 and load.running_requests == 0:
                return
            assert time.monotonic() < deadline, f"pages are still in use: {load}"
            await asyncio.sleep(0.01)

    return wait


@pytest.fixture
def until() -> Callable[[EngineProcess, Callable[[], bool]], Awaitable[None]]:
    """Waits for what an engine does, and fails when the engine ends instead."""

    async def wait(engine: EngineProcess, condition: Callable[[], bool]) -> None:
        await asyncio.to_thread(engine.wait_until, condition, "what the test waits for")

    return wait
