"""EngineClient over gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from rhizome.common.v1.common_pb2 import TraceContext
from rhizome.engine.v1.engine_service_pb2 import (
    EmbedRequest,
    EmbedResponse,
    GetLoadRequest,
    GetModelInfoRequest,
    GetModelInfoResponse,
    GetTokenizerRequest,
)
from rhizome.engine.v1.load_pb2 import Load
from rhizome_telemetry.propagation import from_proto, to_metadata
from rhizome_transport.channel import ENGINE_SERVICE, open_channel
from rhizome_transport.client import TokenizerFiles
from rhizome_transport.errors import EngineError, from_rpc_error
from rhizome_transport.framed_client import FramedClient
from rhizome_transport.frames import FrameMultiplexer
from rhizome_transport.grpc_connection import GrpcConnection, GrpcDialer
from rhizome_transport.inbox import DRAINING
from rhizome_transport.moving_channel import Connection, MovingChannel
from rhizome_transport.tls import ClientTls
from rhizome_transport.tokenizer_chunks import join_chunks
from rhizome_transport.tokens import Tokens

_UNARY_TIMEOUT_S = 10.0
_TOKENIZER_TIMEOUT_S = 60.0
_READY_POLL_S = 0.1

Answer = TypeVar("Answer")


class GrpcEngineClient(FramedClient):
    """Talks to an engine front or a proxy; implements `client.EngineClient`.

    Must be made inside the running loop. Nothing is sent before the first use.

    Args:
        target: `host:port`, or `unix:/path`.
        peer_name: who we are, for the engine's log.
        initial_credit: frames with events the engine may send ahead.
        connect_timeout_s: how long a request waits for a connection.
        tls: absent for plaintext.
        tokens: what the server wants to be shown, if it does.
    """

    def __init__(
        self,
        target: str,
        *,
        peer_name: str,
        initial_credit: int = 64,
        connect_timeout_s: float = 5.0,
        tls: ClientTls | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        self._target = target
        self._dial = GrpcDialer(target, tls=tls, tokens=tokens)
        self._channels = MovingChannel(lambda: open_channel(target, tls=tls, tokens=tokens))
        super().__init__(
            FrameMultiplexer(
                self._connect,
                target=target,
                peer_name=peer_name,
                initial_credit=initial_credit,
                connect_timeout_s=connect_timeout_s,
            )
        )

    async def embed(
        self, request: EmbedRequest, *, timeout_s: float | None = None, trace: TraceContext | None = None
    ) -> EmbedResponse:
        """See `client.EngineClient`."""
        metadata = to_metadata(from_proto(trace))
        return await self._ask(
            lambda connection: connection.engine.Embed(request, timeout=timeout_s, metadata=metadata)
        )

    async def model_info(self, model: str = "") -> GetModelInfoResponse:
        """See `client.EngineClient`."""
        asked = GetModelInfoRequest(model=model)
        return await self._ask(
            lambda connection: connection.engine.GetModelInfo(asked, timeout=_UNARY_TIMEOUT_S)
        )

    async def tokenizer_files(self, model: str = "") -> TokenizerFiles:
        """See `client.EngineClient`."""
        asked = GetTokenizerRequest(model=model)

        async def fetch(connection: Connection) -> TokenizerFiles:
            call = connection.engine.GetTokenizer(asked, timeout=_TOKENIZER_TIMEOUT_S)
            try:
                return join_chunks([chunk async for chunk in call])
            finally:
                call.cancel()

        return await self._ask(fetch)

    async def load(self) -> Load:
        """See `client.EngineClient`."""
        answer = await self._ask(
            lambda connection: connection.engine.GetLoad(GetLoadRequest(), timeout=_UNARY_TIMEOUT_S)
        )
        return answer.load

    async def serving(self, timeout_s: float = 2.0) -> bool:
        """Whether health says that the engine takes requests; False as well when nobody answers."""
        request = health_pb2.HealthCheckRequest(service=ENGINE_SERVICE)
        try:
            answer = await self._channels.now.health.Check(request, timeout=timeout_s)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def wait_ready(self, timeout_s: float) -> None:
        """See `client.EngineClient`."""
        deadline = time.monotonic() + timeout_s
        while not await self.serving(max(0.1, min(2.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                raise EngineError(
                    grpc.StatusCode.UNAVAILABLE,
                    f"the engine at {self._target} was not ready within {timeout_s:g} s; "
                    "see its log, a large model may need more time to load",
                )
            await asyncio.sleep(_READY_POLL_S)

    async def close(self) -> None:
        """See `client.EngineClient`."""
        await self.frames.close()
        await self._channels.close()

    async def _connect(self) -> GrpcConnection:
        if self.frames.leaving:
            self._channels.move(self._channels.now)
        return await self._dial()

    async def _ask(self, ask: Callable[[Connection], Awaitable[Answer]]) -> Answer:
        """Call a method, and once more on another connection where the server is going away."""
        moved = False
        while True:
            async with self._channels.use() as connection:
                try:
                    return await ask(connection)
                except grpc.RpcError as error:
                    problem = from_rpc_error(error)
                if moved or problem.reason != DRAINING:
                    raise problem
                moved = True
                self._channels.move(connection)
