"""Frames over ZeroMQ."""

from __future__ import annotations

import zmq.asyncio
from google.protobuf.message import DecodeError

from rhizome.engine.v1.frames_pb2 import ClientFrame, EngineFrame
from rhizome_transport.dealer import DealerConnection


class ZmqLink:
    """One DEALER connection."""

    def __init__(self, connection: DealerConnection) -> None:
        self._connection = connection
        self.undecodable_frames = 0

    @classmethod
    async def open(cls, context: zmq.asyncio.Context, endpoint: str) -> ZmqLink:
        """Connect; that nobody listens shows with the first frame."""
        return cls(DealerConnection(context, endpoint))

    async def send(self, frame: ClientFrame) -> None:
        """See `link.FrameLink`."""
        await self._connection.send(frame.SerializeToString())

    async def receive(self) -> EngineFrame:
        """See `link.FrameLink`. What is no frame is counted and dropped."""
        while True:
            payload = await self._connection.receive()
            try:
                return EngineFrame.FromString(payload)
            except DecodeError:
                self.undecodable_frames += 1

    async def close(self) -> None:
        """See `link.FrameLink`."""
        self._connection.close()
