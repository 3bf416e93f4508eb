"""What every EngineClient promises, held to in every way in which one reaches an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rhizome_testing.engine_ways import DIRECT, THROUGH_PROXY, Wired, wire


@pytest.fixture
def connect_timeout_s() -> float:
    """How long a client tries; those who want to see it give up replace this."""
    return 20.0


@pytest.fixture(params=[*DIRECT, *THROUGH_PROXY])
async def wired(
    request: pytest.FixtureRequest, endpoint: str, tmp_path: Path, connect_timeout_s: float
) -> AsyncIterator[Wired]:
    async with wire(request.param, endpoint, tmp_path, connect_timeout_s) as one:
        yield one


@pytest.fixture(params=DIRECT)
async def direct(
    request: pytest.FixtureRequest, endpoint: str, tmp_path: Path, connect_timeout_s: float
) -> AsyncIterator[Wired]:
    """For what a proxy does otherwise, as it has several engines."""
    async with wire(request.param, endpoint, tmp_path, connect_timeout_s) as one:
        yield one
