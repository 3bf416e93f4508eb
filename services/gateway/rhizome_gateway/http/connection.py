"""What a handler may do with its connection besides ASGI: write at once, and be told instead of asking.

ASGI's `send` and `receive` are coroutines: a chunk that an engine's frame brings would need a task switch to
be written, and a client's departure a task of its own to be noticed. So our protocol puts one of these into
the scope of each request.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

SCOPE_KEY = "rhizome.connection"
_AT_ONCE = struct.pack("ii", 1, 0)


class _Cork:
    """Stands in for a transport and keeps what is written until it is closed, or `release` is called."""

    __slots__ = ("_pieces", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._pieces.append(data)

    def close(self) -> None:
        # At once: the protocol looks at the transport before it goes on to the next request.
        self.release()
        self._transport.close()

    def release(self) -> None:
        pieces, self._pieces = self._pieces, []
        if pieces and not self._transport.is_closing():
            self._transport.write(b"".join(pieces))


class ClientConnection:
    """The connection of one request.

    What is looked at for every event lies in this one object: at 50 tokens per second each stream is cold
    when its turn comes, and every further object is a miss of the processor's caches.

    Attributes:
        paused: the client reads too slowly, so that nothing more should be written.
        on_lost: called once, when the client goes away before the response is complete.
        on_writable: called when a client that read slowly has caught up.
    """

    __slots__ = ("_cycle", "_transport", "_write", "on_lost", "on_writable", "paused")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._transport = cycle.transport
        self._write: Callable[[bytes], None] | None = cycle.transport.write
        self.paused: bool = cycle.flow.write_paused
        self.on_lost: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None

    @property
    def lost(self) -> bool:
        """Whether the client is gone."""
        return self._cycle.disconnected

    @property
    def request_complete(self) -> bool:
        """Whether all of the request's body is here."""
        return not self._cycle.more_body

    @property
    def complete(self) -> bool:
        """Whether the response was sent."""
        return self._cycle.response_complete

    @property
    def started(self) -> bool:
        """Whether the status line was sent."""
        return self._cycle.response_started

    def cork(self) -> None:
        """Keep what ASGI's `send` writes until `uncork`.

        Head and body would be a system call each, and wake the client up twice.
        """
        self._cycle.transport = cast(asyncio.Transport, _Cork(self._transport))

    def uncork(self) -> None:
        """Write all of it at once."""
        cork, self._cycle.transport = cast(_Cork, self._cycle.transport), self._transport
        cork.release()

    def write_chunk(self, body: bytes) -> None:
        """Write a piece of a response that was started, by ASGI's `send`, without a content-length."""
        write = self._write
        if write is not None:
            write(b"%x\r\n%b\r\n" % (len(body), body))

    def write_last(self, body: bytes) -> None:
        """Write the last piece where nobody can wait any more, and hang up."""
        self.write_chunk(body)
        if not self._cycle.disconnected:
            self._transport.write(b"0\r\n\r\n")
            self._transport.close()

    def abort(self) -> None:
        """Hang up at once, whatever was not sent yet."""
        if not self._cycle.disconnected:
            reset(self._transport)

    def lose(self) -> None:
        """The client is gone."""
        self._write = None
        self._cycle.disconnected = not self._cycle.response_complete
        self._cycle.message_event.set()
        if self.on_lost is not None and not self._cycle.response_complete:
            self.on_lost()

    def resume(self) -> None:
        """The client has caught up."""
        self.paused = False
        if self.on_writable is not None:
            self.on_writable()


def reset(transport: asyncio.Transport) -> None:
    """Break a connection that is still open, and forget what was not sent.

    If it were only closed, the kernel would hold some megabytes for minutes, for a client that reads nothing.
    """
    connected = transport.get_extra_info("socket")
    if connected is not None:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    transport.abort()
