"""A TCP connection's middle, where it can be cut in every way that networks know."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Wire:
    """Passes bytes between a proxy and the port of one server.

    Attributes:
        port: where the proxy connects to.
    """

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self._server_port = server_port
        self._listener: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._half_closed: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def start(self) -> None:
        """Listen."""
        self._listener = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    def reset(self) -> None:
        """RST to both sides of every connection."""
        for pair in tuple(self._pairs):
            for writer in pair:
                _linger(writer)
                writer.transport.abort()

    def half_close(self) -> None:
        """FIN to the proxy; what it still sends arrives."""
        for to_proxy, _ in tuple(self._pairs):
            if to_proxy.can_write_eof() and not to_proxy.is_closing():
                self._half_closed.add(to_proxy)
                to_proxy.write_eof()

    def swallow(self) -> None:
        """Nothing arrives any more, as behind a firewall that forgot; connections stay."""
        self._flowing.clear()

    def flow(self) -> None:
        """Go on where it was."""
        self._flowing.set()

    async def stop(self) -> None:
        """Cut everything and listen no more."""
        if self._listener is not None:
            self._listener.close()
        self.flow()
        self.reset()

    async def _carry(self, from_proxy: asyncio.StreamReader, to_proxy: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            _linger(to_proxy)
            to_proxy.transport.abort()
            return
        pair = (to_proxy, to_server)
        self._pairs.add(pair)
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pass(from_proxy, to_server))
                ways.create_task(self._pass(from_server, to_proxy))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._pairs.discard(pair)
            self._half_closed.discard(to_proxy)
            for writer in pair:
                writer.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while piece := await source.read(1 << 16):
            await self._flowing.wait()
            if sink not in self._half_closed:
                sink.write(piece)
                await sink.drain()
        if sink not in self._half_closed and not sink.is_closing() and sink.can_write_eof():
            sink.write_eof()


def _linger(writer: Any) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
