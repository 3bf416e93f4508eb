"""A channel that leaves a server which goes away, and stays with what it still has open there.

A name may stand for many servers: a Service of Kubernetes, a TCP load balancer. A connection once made stays
with the server that it was made to. Whoever asks again on it, because this server refuses what is new, asks
the same server again until that is gone; with long answers to finish, that may take minutes. A new connection
goes to another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub

if TYPE_CHECKING:
    from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceAsyncStub


class Connection:
    """One channel with its stubs.

    Attributes:
        channel: to the server.
        engine: its EngineService.
        health: its health.
        users: calls that are open on it.
        left: nothing new comes here any more.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.engine: EngineServiceAsyncStub = EngineServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        self.users = 0
        self.left = False


class MovingChannel:
    """The connection to use now, and older ones until nothing is open on them. Made inside the running loop.

    Args:
        open_channel: makes a channel with a connection of its own.
    """

    def __init__(self, open_channel: Callable[[], grpc.aio.Channel]) -> None:
        self._open_channel = open_channel
        self._older: set[Connection] = set()
        self._now = Connection(open_channel())

    @property
    def now(self) -> Connection:
        """Where new calls go."""
        return self._now

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        """The connection of now, which stays open until the end of the block."""
        connection = self._now
        connection.users += 1
        try:
            yield connection
        finally:
            await self._release(connection)

    def move(self, away_from: Connection) -> None:
        """Open another connection, unless somebody has already."""
        if away_from is not self._now:
            return
        away_from.left = True
        self._older.add(away_from)
        self._now = Connection(self._open_channel())

    async def close(self) -> None:
        """Close all of them, whatever is open."""
        older, self._older = self._older, set()
        await asyncio.gather(*(one.channel.close() for one in (self._now, *older)))

    async def _release(self, connection: Connection) -> None:
        connection.users -= 1
        if connection.left and not connection.users and connection in self._older:
            self._older.remove(connection)
            await connection.channel.close()
