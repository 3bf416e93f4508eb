"""Frames over gRPC's `Connect`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import NoReturn

import grpc
import grpc.aio

from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.errors import EngineError, from_rpc_error

FrameCall = grpc.aio.StreamStreamCall[bytes, bytes]


class GrpcLink:
    """One `Connect` call.

    Args:
        call: freshly begun.
        then: closed with it.
    """

    def __init__(self, call: FrameCall, then: AsyncExitStack | None = None) -> None:
        self._call = call
        self._then = then

    @classmethod
    async def open(cls, channel: grpc.aio.Channel, then: AsyncExitStack | None = None) -> GrpcLink:
        """Start the call; that nobody listens shows with the first frame."""
        connect: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            f"/{ENGINE_SERVICE}/Connect"
        )
        return cls(connect(), then)

    async def send(self, frame: bytes) -> None:
        """See `link.FrameLink`."""
        try:
            await self._call.write(frame)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        except (grpc.aio.UsageError, asyncio.InvalidStateError):
            raise await self._ended() from None

    def send_now(self, frame: bytes) -> bool:
        """See `link.FrameLink`; gRPC's writes have to be waited for."""
        return False

    async def carry(self, take: Callable[[Sequence[bytes]], None]) -> NoReturn:
        """See `link.FrameLink`."""
        while True:
            take(await self.receive())

    async def receive(self) -> tuple[bytes]:
        """See `link.FrameLink`."""
        try:
            frame = await self._call.read()
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        if not isinstance(frame, bytes):
            raise await self._ended()
        return (frame,)

    async def close(self) -> None:
        """See `link.FrameLink`. Cancelling matters: a call that is only forgotten goes on for ever."""
        self._call.cancel()
        if self._then is not None:
            await self._then.aclose()

    async def _ended(self) -> EngineError:
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return EngineError(grpc.StatusCode.UNAVAILABLE, "the engine ended the stream")
        return EngineError(code, await self._call.details() or "the engine ended the stream")
