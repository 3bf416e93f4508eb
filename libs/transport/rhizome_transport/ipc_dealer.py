"""A ZeroMQ DEALER on a Unix socket that the event loop itself reads and writes.

libzmq has a thread for its sockets, which every message wakes in either direction, and which wakes the loop;
in a gateway it took 5 to 7 % of the processor time by itself, without what waking it cost. Here a message is
one system call. What goes over the wire is the same (`zmtp`), so the core's ROUTER sees no difference.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from rhizome_transport.channel import MAX_MESSAGE_BYTES
from rhizome_transport.core_connection import CoreConnection, too_many_open
from rhizome_transport.ipc import check_endpoint
from rhizome_transport.zmtp import GREETING, ZmtpError, ZmtpReader, message, ping, pong, ready

HEARTBEAT_S: Final = 2.0
SILENCE_S: Final = 6.0
"""A core that says nothing for so long, not even PONG, is frozen."""

_READ_BYTES = 65_536
_MOST_AT_ONCE = 1 << 20
"""Bytes that are read before others on the loop get their turn."""


class IpcDealer(CoreConnection):
    """See `core_connection.CoreConnection`.

    Args:
        endpoint: `ipc:///path`.
        identity: how the server addresses it, not used before; the server makes one up when empty.

    Raises:
        EngineError: UNAVAILABLE, there are too many open files already.
        ValueError: the endpoint is something else.
    """

    def __init__(self, endpoint: str, *, identity: bytes = b"") -> None:
        super().__init__(endpoint)
        path = check_endpoint(endpoint)
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            raise too_many_open(endpoint, error) from error
        self._zmtp = ZmtpReader(MAX_MESSAGE_BYTES)
        self._ready = self._deaf = False
        self._unsent = memoryview(b"")
        self._heard_at = self._loop.time()
        self._beat_at = self._heard_at + HEARTBEAT_S
        self._beating: asyncio.TimerHandle | None = None
        try:
            self._socket.connect(str(path))
        except OSError:  # nobody listens, or too many wait to be let in
            self._break()
            return
        self._loop.add_reader(self._socket.fileno(), self._on_readable)
        self._beating = self._loop.call_later(HEARTBEAT_S, self._beat)
        self._write(GREETING + ready(identity))

    def send_now(self, payload: bytes) -> bool:
        """See `core_connection.CoreConnection`."""
        if self.broken or not self._ready or self._unsent:
            return False
        self._write(message(payload))
        return not self.broken

    def close(self) -> None:
        """See `core_connection.CoreConnection`."""
        if self._closed:
            return
        self._closed = True
        self._stop()
        self._socket.close()
        self._break()

    def _on_readable(self) -> None:
        self._read()
        self._deliver()

    def _read(self) -> bool:
        """Take what there is; whether more may be there, for which the loop comes again."""
        if self._closed or self.broken:
            return False
        commands: list[tuple[bytes, bytes]] = []
        messages: list[bytes] = []
        left = _MOST_AT_ONCE
        ended = False
        try:
            while left > 0:
                wanted = min(max(_READ_BYTES, self._zmtp.missing_bytes), left)
                data = self._socket.recv(wanted)
                if not data:
                    ended = True
                    break
                self._heard_at = self._loop.time()
                self._zmtp.read(data, messages, commands)
                left -= len(data)
                if len(data) < wanted:
                    break
        except BlockingIOError:
            pass
        except (OSError, ZmtpError):
            ended = True
        self._arrived.extend(messages)
        for name, body in commands:
            self._obey(name, body)
        if ended:
            self._end()
        return left <= 0 and not self.broken

    def _obey(self, name: bytes, body: bytes) -> None:
        if name == b"PING":
            self._write(pong(body))
        elif name == b"READY" and not self._ready:
            self._ready = True
            if not self._unsent:
                self._wake_writer()
        elif name == b"ERROR":
            self._end()

    def _write(self, data: bytes | memoryview) -> None:
        """Send, behind what could not be sent before."""
        if self.broken or self._deaf:
            return
        if self._unsent:
            self._unsent = memoryview(bytes(self._unsent) + data)
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # the other side listens no more; what it said before is still there
            self._deaf = True
            while self._read():
                pass
            self._end()
            return
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]  # no copy: a frame may have megabytes
            self._loop.add_writer(self._socket.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        data, self._unsent = self._unsent, memoryview(b"")
        self._loop.remove_writer(self._socket.fileno())
        self._write(data)
        if not self._unsent and self._ready:
            self._wake_writer()

    def _beat(self) -> None:
        """See that the other side lives. This one may have stood still itself: what came meanwhile counts.

        So may both, on a machine that was suspended or is short of processors. Then the other side gets its
        time again.
        """
        now = self._loop.time()
        if now > self._beat_at + HEARTBEAT_S:
            self._heard_at = max(self._heard_at, now - HEARTBEAT_S)
        self._beat_at = now + HEARTBEAT_S
        self._on_readable()
        if self.broken:
            return
        silence_s = self._loop.time() - self._heard_at
        if silence_s > SILENCE_S:
            self._end()
            return
        if silence_s >= HEARTBEAT_S / 2:
            self._write(ping())
        self._beating = self._loop.call_later(HEARTBEAT_S, self._beat)

    def _end(self) -> None:
        """Nothing more comes."""
        self._stop()
        self._break()

    def _stop(self) -> None:
        """Leave the loop alone."""
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
