"""The reference: frames over gRPC's own asyncio client, as most Python programs would carry them."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import grpc.aio

from rhizome_transport.channel import ENGINE_SERVICE, open_channel
from rhizome_transport.errors import EngineError, from_rpc_error
from rhizome_transport.frame_connection import FrameConnection
from rhizome_transport.grpc_client import GrpcEngineClient


class GrpcAioConnection(FrameConnection):
    """One `Connect` call on a channel of its own.

    Args:
        channel: closed with the connection.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__()
        connect: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            f"/{ENGINE_SERVICE}/Connect"
        )
        self._channel = channel
        self._call = connect()
        self._room = asyncio.Event()
        self._unsent: list[bytes] = []
        self._error: EngineError | None = None
        self._tasks = {asyncio.create_task(self._read()), asyncio.create_task(self._write())}

    def send_now(self, payload: bytes) -> bool:
        """See `FrameConnection`; the call's own writes wait for room."""
        self._unsent.append(payload)
        self._room.set()
        return True

    def close(self) -> None:
        """See `FrameConnection`."""
        self._break()
        self._call.cancel()
        for task in self._tasks:
            task.cancel()
        if not self._closed:
            self._closed = True
            self._tasks.add(asyncio.create_task(self._channel.close()))

    async def _read(self) -> None:
        try:
            while isinstance(frame := await self._call.read(), bytes):
                self._arrived.append(frame)
                self._deliver()
        except grpc.RpcError as error:
            self._error = from_rpc_error(error)
        self._break()

    async def _write(self) -> None:
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):  # who reads learns why
            while await self._room.wait():
                self._room.clear()
                unsent, self._unsent = self._unsent, []
                for payload in unsent:
                    await self._call.write(payload)

    def _lost(self) -> EngineError:
        return self._error or EngineError(grpc.StatusCode.UNAVAILABLE, "the engine ended the stream")


class GrpcAioEngineClient(GrpcEngineClient):
    """A gateway's client, but for its connection."""

    async def _connect(self) -> FrameConnection:
        return GrpcAioConnection(open_channel(self._target))
