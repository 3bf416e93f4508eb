"""Connections to backends, kept for the next request."""

from __future__ import annotations

import asyncio

from rhizome_relay.known_heads import KnownHeads, KnownResponse
from rhizome_relay.picker import Origin
from rhizome_relay.settings import RelaySettings
from rhizome_relay.upstream import Upstream


class OriginPool:
    """Connections to one origin. There is no limit on those in use: a request never waits for another one."""

    def __init__(self, origin: Origin, settings: RelaySettings, heads: KnownHeads[KnownResponse]) -> None:
        self._origin = origin
        self._heads = heads
        self._settings = settings
        self._idle: list[Upstream] = []
        self._all: set[Upstream] = set()

    @property
    def open(self) -> int:
        """How many connections there are, those that are being opened included."""
        return len(self._all)

    def take(self) -> Upstream | None:
        """The connection that was used last, so that others can grow old; `None` when there is none."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closing:
                return connection
        return None

    async def connect(self) -> Upstream:
        """Open another one.

        Raises:
            OSError: the origin cannot be reached, or not in time (TimeoutError).
        """
        origin = self._origin
        connection = Upstream(self._closed, self._heads)
        self._all.add(connection)
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await asyncio.get_running_loop().create_connection(
                    lambda: connection, origin.host, origin.port, ssl=origin.tls
                )
        except BaseException:
            self._all.discard(connection)
            raise
        return connection

    def put(self, connection: Upstream, now: float) -> None:
        """Keep a connection whose exchange has ended, or close it if it is of no use."""
        if connection.release() and len(self._idle) < self._settings.backend_idle_connections:
            connection.idle_since = now
            self._idle.append(connection)
        else:
            connection.abort()

    def expire(self, now: float) -> None:
        """Close what has been idle for too long; the oldest come first."""
        oldest = now - self._settings.backend_keep_alive_s
        kept = 0
        while kept < len(self._idle) and self._idle[kept].idle_since < oldest:
            self._idle[kept].abort()
            kept += 1
        del self._idle[:kept]

    def close(self) -> None:
        """Close all of them."""
        for connection in list(self._all):
            connection.abort()

    def _closed(self, connection: Upstream) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


class Pools:
    """A pool for each origin."""

    def __init__(self, settings: RelaySettings) -> None:
        self._settings = settings
        self._pools: dict[Origin, OriginPool] = {}
        self._heads: KnownHeads[KnownResponse] = KnownHeads()

    def of(self, origin: Origin) -> OriginPool:
        """The pool of an origin."""
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = OriginPool(origin, self._settings, self._heads)
        return pool

    @property
    def open(self) -> int:
        """How many connections there are."""
        return sum(pool.open for pool in self._pools.values())

    def expire(self, now: float) -> None:
        """Close idle connections, forget origins without any."""
        for origin, pool in list(self._pools.items()):
            pool.expire(now)
            if not pool.open:
                del self._pools[origin]

    def close(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            pool.close()
