"""A gRPC server whose `Connect` answers with what it hears, and whether it can be reached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_connection import GrpcConnection, GrpcDialer
from rhizome_transport.grpc_server import GrpcServer
from rhizome_transport.tls import ServerTls

Handler = Callable[[AsyncIterator[bytes], Any], AsyncIterator[bytes]]


async def echo(frames: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
    async for one in frames:
        yield one


@asynccontextmanager
async def served(
    handler: Handler = echo, address: str = "127.0.0.1:0", tls: ServerTls | None = None
) -> AsyncIterator[tuple[GrpcServer, str]]:
    server = GrpcServer(address, service_names=(ENGINE_SERVICE,), tls=tls)
    connect: Any = grpc.stream_stream_rpc_method_handler(handler)
    server.add_handlers(ENGINE_SERVICE, {"Connect": connect})
    port = await server.start()
    try:
        yield server, address if address.startswith("unix:") else f"127.0.0.1:{port}"
    finally:
        await server.drain_and_stop(0)


async def next_of(connection: GrpcConnection) -> bytes:
    return await asyncio.wait_for(connection.receive(), 10)


async def echoes(target: str, **options: Any) -> bool:
    """Whether somebody there answers; else why is raised."""
    connection = await GrpcDialer(target, **options)()
    connection.post(b"hello")
    answer = await next_of(connection)
    connection.close()
    return answer == b"hello"


async def fails(target: str, said: str | None, **options: Any) -> bool:
    with pytest.raises(EngineError, match=said) as caught:
        await echoes(target, **options)
    return caught.value.code is grpc.StatusCode.UNAVAILABLE
