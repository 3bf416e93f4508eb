"""A ZeroMQ DEALER that says when the other side is gone.

ZeroMQ hides disconnections: a DEALER reconnects on its own and whatever was under way is silently lost. Here
a connection is used once; its socket monitor tells when it broke, and whoever needs another one opens it.

The sockets' descriptors are watched by the event loop itself. `zmq.asyncio` would make a future and a task
switch of every message, half of what receiving a frame costs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import grpc
import zmq
from zmq.utils.monitor import recv_monitor_message

from rhizome_transport.channel import MAX_MESSAGE_BYTES
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


class DealerConnection:
    """Carries payloads to and from a `frame_server.FrameServer` until it breaks.

    Must be made inside the running loop. One task receives and one sends.

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
        self._endpoint = endpoint
        self._refused = False
        try:
            self._socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
            try:
                self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(_BROKEN_EVENTS)
            except zmq.ZMQError:
                self._socket.close(linger=0)
                raise
        except zmq.ZMQError as error:
            raise EngineError(
                grpc.StatusCode.UNAVAILABLE, f"no further connection to {endpoint} can be opened: {error}"
            ) from error
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
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[bytes] = deque()
        self._take: Callable[[Sequence[bytes]], None] | None = None
        self._failure: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._closed = False
        self.broken = False
        """Whether nothing can be sent any more; what arrived before can still be received."""
        self._loop.add_reader(self._socket.fileno(), self._on_ready)
        self._loop.add_reader(self._monitor.fileno(), self._on_monitor)
        self._socket.connect(endpoint)
        self._loop.call_soon(self._on_monitor)  # something may have happened before anybody watched

    @property
    def waiting_bytes(self) -> int:
        """Bytes that arrived and were not received yet."""
        return sum(map(len, self._arrived))

    async def send(self, payload: bytes) -> None:
        """Send one message.

        Raises:
            EngineError: UNAVAILABLE, the connection broke.
        """
        while not self.broken:
            if self.send_now(payload):
                return
            writable = self._writer = self._loop.create_future()
            self._look_again()
            await writable
        raise self._lost()

    def send_now(self, payload: bytes) -> bool:
        """Send one message if there is room for it; whether it was sent."""
        if self.broken:
            return False
        try:
            self._socket.send(payload, zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._look_again()
        return True

    async def receive(self) -> bytes:
        """Receive one message; cancelling loses none.

        Raises:
            EngineError: UNAVAILABLE, the connection broke and everything that came before was received.
        """
        await self._wait_for_some()
        return self._arrived.popleft()

    async def receive_all(self) -> list[bytes]:
        """Receive all messages that have arrived, at least one; raises as `receive` does."""
        await self._wait_for_some()
        messages = list(self._arrived)
        self._arrived.clear()
        return messages

    async def carry(self, take: Callable[[Sequence[bytes]], None]) -> NoReturn:
        """Hand over all messages as they arrive, from the event loop's own callback.

        A future and a task switch for each wake-up cost as much as reading what came.

        Raises:
            EngineError: UNAVAILABLE, the connection broke and everything that came before was handed over.
            Exception: what `take` raised.
        """
        self._take, self._failure = take, None
        try:
            self._hand_over()
            while self._failure is None and not self.broken:
                self._reader = self._loop.create_future()
                await self._reader
            self._hand_over()
            raise self._failure or self._lost()
        finally:
            self._take = None

    def _hand_over(self) -> None:
        if self._take is None or self._failure is not None or not self._arrived:
            return
        messages = list(self._arrived)
        self._arrived.clear()
        try:
            self._take(messages)
        except Exception as error:  # for whoever waits in `carry`
            self._failure = error
            self._wake(self._reader)

    async def _wait_for_some(self) -> None:
        while not self._arrived:
            if self.broken:
                raise self._lost()
            self._reader = self._loop.create_future()
            await self._reader

    def close(self) -> None:
        """Let go of the connection; never raises and may be called twice."""
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
        if self._take is not None:
            self._hand_over()
        elif arrived:
            self._wake(self._reader)
        if self._writer is not None:
            self._look_again()

    def _look_again(self) -> None:
        """After anything but reading to the end: the descriptor's news may have been used up."""
        events = self._events()
        if events & _POLLIN:
            self._loop.call_soon(self._on_ready)
        if events & _POLLOUT and self._writer is not None:
            self._wake(self._writer)
            self._writer = None

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

    def _break(self) -> None:
        self.broken = True
        self._wake(self._reader)
        self._wake(self._writer)

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _lost(self) -> EngineError:
        if self._refused:
            text = f"the engine core at {self._endpoint} does not let our key in; add its public half there"
            return EngineError(grpc.StatusCode.UNAUTHENTICATED, text)
        return EngineError(
            grpc.StatusCode.UNAVAILABLE, f"the engine core at {self._endpoint} is gone or not started"
        )
