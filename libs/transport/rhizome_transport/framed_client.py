"""What clients over gRPC and over ZeroMQ have in common: requests travel in frames."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from rhizome.common.v1.common_pb2 import TraceContext
from rhizome.engine.v1.generate_pb2 import GenerateResponse
from rhizome_transport.frames import FrameMultiplexer
from rhizome_transport.request_stream import RequestStream
from rhizome_transport.split_request import AnyRequest


class FramedClient:
    """The methods of `client.EngineClient` that use the frame stream alone.

    Attributes:
        frames: the stream.
    """

    def __init__(self, frames: FrameMultiplexer) -> None:
        self.frames = frames

    async def open(
        self,
        request: AnyRequest,
        on_arrival: Callable[[], None],
        *,
        timeout_s: float | None = None,
        trace: TraceContext | None = None,
    ) -> RequestStream:
        """See `client.EngineClient`."""
        return await self.frames.open(request, on_arrival, timeout_s=timeout_s, trace=trace)

    def generate(
        self, request: AnyRequest, *, timeout_s: float | None = None, trace: TraceContext | None = None
    ) -> AsyncGenerator[GenerateResponse, None]:
        """See `client.EngineClient`."""
        return self.frames.generate(request, timeout_s=timeout_s, trace=trace)

    async def cancel(self, request_id: str, *, satisfied: bool = False) -> None:
        """See `client.EngineClient`."""
        await self.frames.cancel(request_id, satisfied=satisfied)
