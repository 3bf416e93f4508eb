"""A ZeroMQ DEALER that says when the other side is gone.

ZeroMQ hides disconnections: a DEALER reconnects on its own and whatever was under way is silently lost. Here
a connection is used once; its socket monitor tells when it broke, and whoever needs another one opens it.

The sockets' descriptors are watched by the event loop itself. `zmq.asyncio` would make a future and a task
switch of every message, half of what receiving a frame costs. On a Unix socket `ipc_dealer` does without
libzmq; this is for TCP, with keys.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import grpc
import zmq
from zmq.utils.monitor import recv_monitor_message

from rhizome_transport.channel import MAX_MESSAGE_BYTES
from rhizome_transport.core_connection import CoreConnection, too_many_open
from rhizome_transport.curve import ClientCurve
from rhizome_transport.errors import EngineError

RELAYED_IDENTITY_PREFIX = b"relayed-"
"""Begins the ZeroMQ identity of a connection that carries the frames of somebody from elsewhere."""

HEARTBEAT_INTERVAL_MS = 2_000
HEARTBEAT_TIMEOUT_MS = 6_000

# -1 would mean never, but then libzmq also drops what arrived and was not read when the connection ends.
_NEVER_MS = 24 * 3600 * 1000

_BROKEN_EVENTS = int(
    zmq.Event.DISCONNECTED
    | zmq.Event.CLOSED
    | zmq.Event.CONNECT_RETRIED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
)

_REFUSED_EVENTS = int(zmq.Event.HANDSHAKE_FAILED_AUTH)

_CONNECT_TIMEOUT_MS = 5_000
"""For TCP, where a host that is off says nothing."""

_POLLIN, _POLLOUT = int(zmq.POLLIN), int(zmq.POLLOUT)
_MOST_AT_ONCE = 256
"""Messages that are read before others on the loop get their turn."""


class DealerConnection(CoreConnection):
    """See `core_connection.CoreConnection`.

    Args:
        context: shared by all connections of a process.
        endpoint: `ipc:///path`, or `tcp://host:port` with keys; see `endpoint.check_core_target`.
        identity: how the server addresses it, not used before; made up by ZeroMQ when empty.
        curve: keys for TCP; not used on ipc.

    Raises:
        EngineError: UNAVAILABLE, there are too many sockets or open files already.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        endpoint: str,
        *,
        identity: bytes = b"",
        curve: ClientCurve | None = None,
    ) -> None:
        super().__init__(endpoint)
        self._refused = False
        try:
            self._socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
            try:
                self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(_BROKEN_EVENTS)
            except zmq.ZMQError:
                self._socket.close(linger=0)
                raise
        except zmq.ZMQError as error:
            raise too_many_open(endpoint, error) from error
        self._socket.linger = 0
        if identity:
            self._socket.routing_id = identity
        self._socket.maxmsgsize = MAX_MESSAGE_BYTES
        self._socket.reconnect_ivl = _NEVER_MS
        self._socket.heartbeat_ivl = HEARTBEAT_INTERVAL_MS
        self._socket.heartbeat_timeout = HEARTBEAT_TIMEOUT_MS
        self._socket.heartbeat_ttl = HEARTBEAT_TIMEOUT_MS
        if curve is not None and not endpoint.startswith("ipc://"):
            curve.apply(self._socket)
            self._socket.connect_timeout = _CONNECT_TIMEOUT_MS
            self._socket.ipv6 = True
        self._loop.add_reader(self._socket.fileno(), self._on_ready)
        self._loop.add_reader(self._monitor.fileno(), self._on_monitor)
        self._socket.connect(endpoint)
        self._loop.call_soon(self._on_monitor)  # something may have happened before anybody watched

    def send_now(self, payload: bytes) -> bool:
        """See `core_connection.CoreConnection`."""
        if self.broken:
            return False
        try:
            self._socket.send(payload, zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._look_again()
        return True

    def close(self) -> None:
        """See `core_connection.CoreConnection`."""
        if self._closed:
            return
        self._closed = True
        for socket in (self._socket, self._monitor):
            self._loop.remove_reader(socket.fileno())
        with suppress(zmq.ZMQError):
            self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
        self._break()

    def _on_ready(self) -> None:
        """Read what there is, and let the writer go on if it can.

        The descriptor tells of changes only, and every look at the socket may take what it has to tell. So
        whatever a look shows has to be dealt with, or looked at again.
        """
        if self._closed:
            return
        arrived, receive = self._arrived, self._socket.recv
        try:
            for _ in range(_MOST_AT_ONCE):
                arrived.append(receive(zmq.NOBLOCK))
            self._loop.call_soon(self._on_ready)
        except zmq.Again:
            pass
        except zmq.ZMQError:  # the context ended
            self._break()
        self._deliver()
        if self._has_to_write:
            self._look_again()

    def _before_waiting(self) -> None:
        self._look_again()

    def _look_again(self) -> None:
        """After anything but reading to the end: the descriptor's news may have been used up."""
        events = self._events()
        if events & _POLLIN:
            self._loop.call_soon(self._on_ready)
        if events & _POLLOUT:
            self._wake_writer()

    def _events(self) -> int:
        try:
            return int(self._socket.getsockopt(zmq.EVENTS))
        except zmq.ZMQError:
            return 0

    def _on_monitor(self) -> None:
        if self._closed:
            return
        try:
            while True:
                event = recv_monitor_message(self._monitor, zmq.NOBLOCK)
                if int(event["event"]) & _BROKEN_EVENTS:
                    self._refused = bool(int(event["event"]) & _REFUSED_EVENTS)
                    self._drain()
                    self._break()
                    return
        except zmq.Again:
            pass
        except zmq.ZMQError:
            self._break()

    def _drain(self) -> None:
        """Read all that came before the end."""
        with suppress(zmq.ZMQError):
            while True:
                self._arrived.append(self._socket.recv(zmq.NOBLOCK))

    def _lost(self) -> EngineError:
        if self._refused:
            text = f"the engine core at {self._endpoint} does not let our key in; add its public half there"
            return EngineError(grpc.StatusCode.UNAUTHENTICATED, text)
        return super()._lost()
