"""Simulated and scripted servers, and connections to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from tests.backends.scripted_routes import Routes
from tests.proxy.conftest import eventually

from rhizome_backends.base import Server
from rhizome_backends.open_server import open_server
from rhizome_backends.spec import BackendSpec
from rhizome_launcher.simulate.flavours import FLAVOURS
from rhizome_launcher.simulate.http.server import HttpServer
from rhizome_launcher.simulate.physics import Physics
from rhizome_relay.pool import Pools
from rhizome_relay.settings import RelaySettings


def opening(address: str, *, pools: Pools, **options: str) -> Server:
    """Make the server behind an address."""
    return open_server(BackendSpec(address, **options), pools=pools)


Simulate = Callable[..., Awaitable[HttpServer]]
Script = Callable[..., Awaitable[Routes]]


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Awaitable[None]]:
    return eventually


@pytest.fixture
async def pools() -> AsyncIterator[Pools]:
    mishaps: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: mishaps.append(context))
    pools = Pools(RelaySettings())
    yield pools
    pools.close()
    await asyncio.sleep(0)
    assert mishaps == []


@pytest.fixture
async def simulate() -> AsyncIterator[Simulate]:
    """Starts a simulated server in which a token takes a minute, so that what is open stays open."""
    servers: list[HttpServer] = []

    async def start(kind: str, port: int = 0, **physics: Any) -> HttpServer:
        slow = Physics(**{"prefill_tokens_per_s": 1e9, "itl_base_ms": 60_000.0, "max_running": 1, **physics})
        servers.append(HttpServer(FLAVOURS[kind], slow))
        await servers[-1].start(port=port)
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    """Starts a server with scripted routes."""
    servers: list[Routes] = []

    async def start(routes: dict[str, Any], key: str = "") -> Routes:
        servers.append(Routes(routes, key))
        await servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        await server.stop()
