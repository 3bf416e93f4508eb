"""The listener of the HTTP face."""

from __future__ import annotations

import asyncio

from rhizome_relay.downstream import Downstream
from rhizome_relay.relay import Relay

_BACKLOG = 4096


class HttpServer:
    """Accepts clients for a relay.

    Attributes:
        port: where it listens, once started.
    """

    def __init__(self, relay: Relay) -> None:
        self.port = 0
        self._relay = relay
        self._clients: set[Downstream] = set()
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> int:
        """Listen; 0 takes a free port.

        Args:
            host: address to listen on.
            port: TCP port.
            reuse_port: whether other processes may listen there too.

        Returns:
            The port.

        Raises:
            OSError: the address is taken or not ours.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._accept, host, port, backlog=_BACKLOG, reuse_port=reuse_port or None
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self._look_at_deadlines()
        return self.port

    async def stop(self, grace_s: float) -> bool:
        """Accept nobody, finish the responses under way, close.

        Args:
            grace_s: after this time connections are cut.

        Returns:
            Whether all responses were finished.
        """
        self._relay.draining = True
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            client.close()
        finished = True
        try:
            await asyncio.wait_for(self._empty.wait(), grace_s)
        except TimeoutError:
            finished = False
            for client in list(self._clients):
                client.abort()
        if self._sweep is not None:
            self._sweep.cancel()
        self._relay.pools.close()
        return finished

    def _accept(self) -> Downstream:
        client = Downstream(self._relay, self._closed)
        self._clients.add(client)
        self._empty.clear()
        return client

    def _closed(self, client: Downstream) -> None:
        self._clients.discard(client)
        if not self._clients:
            self._empty.set()

    def _look_at_deadlines(self) -> None:
        """One timer for everything, or thousands of streams would set and cancel theirs all the time."""
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(self._relay.settings.sweep_s, self._look_at_deadlines)
        now = loop.time()
        for client in [client for client in self._clients if client.deadline <= now]:
            client.expire()
        self._relay.pools.expire(now)
