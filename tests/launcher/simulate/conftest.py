"""Simulated servers inside the test's own loop, and a client that sees every byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest_asyncio

from rhizome_launcher.simulate.flavours import FLAVOURS
from rhizome_launcher.simulate.http.server import HttpServer
from rhizome_launcher.simulate.physics import Physics

FAST = Physics(prefill_tokens_per_s=1e6, itl_base_ms=1.0, itl_per_request_ms=0.0)
Start = Callable[..., Any]


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    """Start a server of a kind, on a free port."""
    servers: list[HttpServer] = []

    async def starting(kind: str = "vllm", physics: Physics = FAST, **options: Any) -> HttpServer:
        server = HttpServer(FLAVOURS[kind], physics, **options)
        servers.append(server)
        await server.start()
        return server

    yield starting
    for server in servers:
        server.stop()


async def exchange(
    server: HttpServer | int, method: str, path: str, value: object = None
) -> tuple[int, bytes]:
    """One request to a server or a port, on a connection of its own: status and body."""
    port = server if isinstance(server, int) else server.port
    body = b"" if value is None else orjson.dumps(value)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head_bytes, _, rest = answer.partition(b"\r\n\r\n")
    return int(head_bytes.split()[1]), rest


def completion(**fields: Any) -> dict[str, Any]:
    """A completion request."""
    return {"model": "simulated", "prompt": "Once upon a time", "max_tokens": 8, **fields}


async def until(true: Callable[[], bool]) -> None:
    """Wait for a state, at most ten seconds."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - a state of somebody else's
            await asyncio.sleep(0.001)
