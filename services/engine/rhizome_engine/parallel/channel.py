"""A pair of sockets between rank 0 and another rank; without a name, so that nobody else can connect.

The system closes a process's end with the process, however that ends, so the other side notices at once.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from rhizome_engine.parallel.frames import HEAD, FrameError, Head, read_head

_BUFFER_BYTES = 1 << 20
"""Asked for; the system may give less. A step that fits need not wait until the other rank reads it."""


class Frame(NamedTuple):
    """What arrived."""

    head: Head
    body: bytearray

    @property
    def text(self) -> str:
        """Of a frame that holds text."""
        return self.body.decode()


class Channel:
    """One end.

    Args:
        end: a connected stream socket.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)

    @classmethod
    def pair(cls) -> tuple[Channel, socket.socket]:
        """Return one end, and the socket of the other one."""
        own, other = socket.socketpair()
        return cls(own), other

    def fileno(self) -> int:
        """For `selectors`."""
        return self._socket.fileno()

    def send(self, frame: bytes) -> None:
        """Send a frame, waiting until there is room for all of it.

        Raises:
            OSError: the other end is gone.
        """
        self._socket.sendall(frame)

    def receive(self) -> Frame | None:
        """Wait for a frame; None where the other end is gone.

        Raises:
            FrameError: what arrives is no frame.
        """
        beginning = self._receive(HEAD.size)
        if beginning is None:
            return None
        head = read_head(bytes(beginning))
        body = self._receive(head.num_bytes)
        return None if body is None else Frame(head, body)

    def _receive(self, count: int) -> bytearray | None:
        data = bytearray(count)
        view, place = memoryview(data), 0
        while place < count:
            try:
                got = self._socket.recv_into(view[place:])
            except ConnectionResetError:
                return None
            if not got:
                if place:
                    raise FrameError(f"the other end is gone after {place} of {count} bytes")
                return None
            place += got
        return data

    def close(self) -> None:
        """Let the other end see that this one is gone."""
        self._socket.close()
