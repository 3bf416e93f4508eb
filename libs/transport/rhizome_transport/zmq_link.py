"""Frames over ZeroMQ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import zmq

from rhizome_transport.core_connection import CoreConnection
from rhizome_transport.curve import ClientCurve
from rhizome_transport.open_core import open_core


class ZmqLink:
    """One DEALER connection."""

    def __init__(self, connection: CoreConnection) -> None:
        self._connection = connection

    @classmethod
    async def open(
        cls, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, curve: ClientCurve | None = None
    ) -> ZmqLink:
        """Connect; that nobody listens shows with the first frame."""
        return cls(open_core(context, endpoint, curve=curve))

    async def send(self, frame: bytes) -> None:
        """See `link.FrameLink`."""
        await self._connection.send(frame)

    def send_now(self, frame: bytes) -> bool:
        """See `link.FrameLink`."""
        return self._connection.send_now(frame)

    async def carry(self, take: Callable[[Sequence[bytes]], None]) -> NoReturn:
        """See `link.FrameLink`."""
        await self._connection.carry(take)

    async def receive(self) -> list[bytes]:
        """See `link.FrameLink`."""
        return await self._connection.receive_all()

    async def close(self) -> None:
        """See `link.FrameLink`."""
        self._connection.close()
