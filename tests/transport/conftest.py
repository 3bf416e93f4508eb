"""Where an engine core listens, and waiting for what it does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import uvloop

from rhizome_testing.certificates import Authority

Until = Callable[[Callable[[], bool]], Awaitable[None]]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    loops: dict[str, Any] = {"asyncio": asyncio.new_event_loop}
    if item.path.name.startswith("test_grpc_connection"):  # each has transports of its own
        loops["uvloop"] = uvloop.new_event_loop
    return loops


@pytest.fixture
def endpoint() -> Iterator[str]:
    # pytest's own directories are too long for a socket's path and not private.
    with TemporaryDirectory(prefix="rz-") as directory:
        yield f"ipc://{Path(directory) / 'run' / 'core.sock'}"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="session")
def ours(folder: Path) -> Authority:
    return Authority(folder, "ours")


@pytest.fixture(scope="session")
def theirs(folder: Path) -> Authority:
    return Authority(folder, "theirs")


@pytest.fixture
def until() -> Until:
    async def poll(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 - any condition
                await asyncio.sleep(0.005)

    return poll
