"""`Connect` on the front: bytes from the gRPC stream to a ZeroMQ socket of its own, and back, undecoded.

The peer may be anybody. It gets a socket once it has said something, its frames must be no larger than
requests are, and while it does not read what it was told it is not heard either.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

import grpc
import zmq

from rhizome_engine.front.core_link import CoreLink, lost_error
from rhizome_engine.front.stream_limits import StreamLimits, affordable_connects
from rhizome_transport.core_connection import CoreConnection
from rhizome_transport.dealer import RELAYED_IDENTITY_PREFIX
from rhizome_transport.errors import EngineError
from rhizome_transport.open_core import open_core

if TYPE_CHECKING:
    from collections.abc import Callable

    Context = grpc.aio.ServicerContext[bytes, bytes]

_LAST_WRITE_S = 1.0
_HELLO_WITHIN_S = 10.0
_MOST_FRAME_BYTES = 16 * 1024 * 1024
"""Two million token ids, which is more than any context window, and all that may come with them."""
_MOST_UNREAD_BYTES = 8 * 1024 * 1024
_MAX_SOCKETS = 16_384
"""Three per stream: the connection, and both ends of its monitor. ZeroMQ's own limit is 1,023."""


class ConnectBridge:
    """Carries `Connect` streams to the core; one DEALER socket each, so that peers stay apart.

    Credit is the peers' own business and crosses the bridge like every other frame; gRPC's flow control and
    ZeroMQ's high-water marks bound what lies in between.
    """

    def __init__(self, link: Callable[[], CoreLink]) -> None:
        """Take a function that gives the link to a serving core or raises EngineError."""
        self._link = link
        self._zmq: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._zmq.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
        self._limits = StreamLimits(affordable_connects(), "Connect")

    async def connect(self, context: Context) -> None:
        """Serve one stream until the peer closes its side, it is cancelled, or the core is lost.

        A peer that closes its side cannot give credit or cancel any more, so the conversation ends there and
        the core cancels what it left open.

        Raises:
            EngineError: UNAVAILABLE, because there is no core or it died; RESOURCE_EXHAUSTED, too many are
                open; INVALID_ARGUMENT, a frame is too large.
        """
        with self._limits.one_of(context.peer()):
            first = await _read_first(context)
            if first is not None:
                await self._carry(context, first)

    async def _carry(self, context: Context, first: bytes) -> None:
        link = self._link()
        identity = RELAYED_IDENTITY_PREFIX + uuid.uuid4().bytes
        core = open_core(self._zmq, link.endpoint, identity=identity)
        has_read = asyncio.Event()
        upwards = asyncio.ensure_future(_to_core(context, core, first, has_read))
        downwards = asyncio.ensure_future(_to_peer(context, core, has_read))
        tasks = (upwards, downwards, asyncio.ensure_future(link.lost.wait()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            lost = link.lost.is_set() or core.broken
            if upwards.done() and not lost:
                upwards.result()
        finally:
            core.close()
            # grpc cannot end a stream while a write is under way, and cancelling the task does not stop that.
            try:
                await asyncio.wait((downwards,), timeout=_LAST_WRITE_S)
            finally:  # the peer may go away while this waits
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        if lost:
            raise lost_error(emitted=False)


async def _read_first(context: Context) -> bytes | None:
    """The first frame; None where the peer closes its side before."""
    try:
        async with asyncio.timeout(_HELLO_WITHIN_S):
            frame = await context.read()
    except TimeoutError:
        text = f"no frame came within {_HELLO_WITHIN_S:g} s; the first frame of Connect must be Hello"
        raise EngineError(grpc.StatusCode.DEADLINE_EXCEEDED, text) from None
    return frame if isinstance(frame, bytes) else None


async def _to_core(context: Context, core: CoreConnection, first: bytes, has_read: asyncio.Event) -> None:
    frame = first
    while isinstance(frame, bytes):  # else grpc.aio.EOF
        if len(frame) > _MOST_FRAME_BYTES:
            text = f"a frame has {len(frame)} bytes; at most {_MOST_FRAME_BYTES} are taken"
            raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, text)
        while core.waiting_bytes > _MOST_UNREAD_BYTES:
            has_read.clear()
            await has_read.wait()
        await core.send(frame)
        frame = await context.read()


async def _to_peer(context: Context, core: CoreConnection, has_read: asyncio.Event) -> None:
    while True:
        await context.write(await core.receive())
        has_read.set()
