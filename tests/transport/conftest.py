"""Where an engine core listens, and waiting for what it does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

Until = Callable[[Callable[[], bool]], Awaitable[None]]


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
