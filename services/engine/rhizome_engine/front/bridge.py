"""`Connect` on the front: bytes from the gRPC stream to a ZeroMQ socket of its own, and back, undecoded."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

import grpc
import zmq

from rhizome_engine.front.core_link import CoreLink, lost_error
from rhizome_transport.dealer import RELAYED_IDENTITY_PREFIX, DealerConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    Context = grpc.aio.ServicerContext[bytes, bytes]

_LAST_WRITE_S = 1.0
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

    async def connect(self, context: Context) -> None:
        """Serve one stream until the peer closes its side, it is cancelled, or the core is lost.

        A peer that closes its side cannot give credit or cancel any more, so the conversation ends there and
        the core cancels what it left open.

        Raises:
            EngineError: UNAVAILABLE, because there is no core or it died.
        """
        link = self._link()
        identity = RELAYED_IDENTITY_PREFIX + uuid.uuid4().bytes
        core = DealerConnection(self._zmq, link.endpoint, identity=identity)
        upwards = asyncio.ensure_future(_to_core(context, core))
        downwards = asyncio.ensure_future(_to_peer(context, core))
        tasks = (upwards, downwards, asyncio.ensure_future(link.lost.wait()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            lost = link.lost.is_set() or core.broken
        finally:
            core.close()
            # grpc cannot end a stream while a write is under way, and cancelling the task does not stop that.
            await asyncio.wait((downwards,), timeout=_LAST_WRITE_S)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if lost:
            raise lost_error(emitted=False)


async def _to_core(context: Context, core: DealerConnection) -> None:
    while True:
        frame = await context.read()
        if not isinstance(frame, bytes):  # grpc.aio.EOF
            return
        await core.send(frame)


async def _to_peer(context: Context, core: DealerConnection) -> None:
    while True:
        await context.write(await core.receive())
