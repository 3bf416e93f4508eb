"""A ZeroMQ DEALER that says when the other side is gone.

ZeroMQ hides disconnections: a DEALER reconnects on its own and whatever was under way is silently lost. Here
a connection is used once; its socket monitor tells when it broke, and whoever needs another one opens it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from rhizome_transport.channel import MAX_MESSAGE_BYTES
from rhizome_transport.errors import EngineError

RELAYED_IDENTITY_PREFIX = b"relayed-"
"""Begins the ZeroMQ identity of a connection that carries the frames of somebody from elsewhere."""

HEARTBEAT_INTERVAL_MS = 2_000
HEARTBEAT_TIMEOUT_MS = 6_000

# -1 would mean never, but then libzmq also drops what arrived and was not read when the connection ends.
_NEVER_MS = 24 * 3600 * 1000

_BROKEN_EVENTS = (
    zmq.Event.DISCONNECTED
    | zmq.Event.CLOSED
    | zmq.Event.CONNECT_RETRIED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
)


class DealerConnection:
    """Carries payloads to and from a `frame_server.FrameServer` until it breaks.

    Must be made inside the running loop.

    Args:
        context: shared by all connections of a process.
        endpoint: `ipc:///path`.
        identity: how the server addresses it, not used before; made up by ZeroMQ when empty.

    Raises:
        EngineError: UNAVAILABLE, there are too many sockets or open files already.
    """

    def __init__(self, context: zmq.asyncio.Context, endpoint: str, *, identity: bytes = b"") -> None:
        self._endpoint = endpoint
        try:
            self._socket = context.socket(zmq.DEALER)
            try:
                self._monitor = self._socket.get_monitor_socket(_BROKEN_EVENTS)
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
        self._pending: asyncio.Future[bytes] | None = None
        self._watching = asyncio.ensure_future(self._watch())
        self._socket.connect(endpoint)

    @property
    def broken(self) -> bool:
        """Whether nothing can be sent any more; what arrived before can still be received."""
        return self._watching.done()

    async def send(self, payload: bytes) -> None:
        """Send one message.

        Raises:
            EngineError: UNAVAILABLE, the connection broke.
        """
        if self.broken:
            raise self._lost()
        sending = asyncio.ensure_future(self._socket.send(payload))
        if not sending.done():
            await asyncio.wait((sending, self._watching), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                sending.cancel()
                raise self._lost()
        sending.result()

    async def receive(self) -> bytes:
        """Receive one message; cancelling loses none.

        Raises:
            EngineError: UNAVAILABLE, the connection broke and everything that came before was received.
        """
        if self._pending is None:
            self._pending = asyncio.ensure_future(self._socket.recv())
        pending = self._pending
        if not pending.done():
            await asyncio.wait((pending, self._watching), return_when=asyncio.FIRST_COMPLETED)
        if not pending.done():
            pending.cancel()
            pending = asyncio.ensure_future(self._socket.recv(zmq.DONTWAIT))
        self._pending = None
        try:
            return await pending
        except zmq.Again:
            raise self._lost() from None

    def close(self) -> None:
        """Let go of the connection; never raises and may be called twice."""
        self._watching.cancel()
        if self._pending is not None:
            self._pending.cancel()
        with suppress(zmq.ZMQError):
            self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)

    async def _watch(self) -> None:
        while True:
            event = parse_monitor_message(await self._monitor.recv_multipart())
            if event["event"] & _BROKEN_EVENTS:
                return

    def _lost(self) -> EngineError:
        return EngineError(
            grpc.StatusCode.UNAVAILABLE, f"the engine core at {self._endpoint} is gone or not started"
        )
