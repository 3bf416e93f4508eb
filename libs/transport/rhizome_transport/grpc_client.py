"""EngineClient over gRPC."""

from __future__ import annotations

import asyncio
import time

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rhizome.common.v1.common_pb2 import TraceContext
from rhizome.engine.v1.engine_service_pb2 import (
    EmbedRequest,
    EmbedResponse,
    GetLoadRequest,
    GetModelInfoRequest,
    GetModelInfoResponse,
    GetTokenizerRequest,
)
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.load_pb2 import Load
from rhizome_transport.channel import ENGINE_SERVICE, open_channel
from rhizome_transport.client import TokenizerFiles
from rhizome_transport.errors import EngineError, from_rpc_error
from rhizome_transport.framed_client import FramedClient
from rhizome_transport.frames import FrameMultiplexer
from rhizome_transport.grpc_link import GrpcLink
from rhizome_transport.tls import ClientTls
from rhizome_transport.tokenizer_chunks import join_chunks

_UNARY_TIMEOUT_S = 10.0
_TOKENIZER_TIMEOUT_S = 60.0
_READY_POLL_S = 0.1


class GrpcEngineClient(FramedClient):
    """Talks to an engine front or a proxy; implements `client.EngineClient`.

    Must be made inside the running loop. Nothing is sent before the first use.

    Args:
        target: `host:port`, or `unix:/path`.
        peer_name: who we are, for the engine's log.
        initial_credit: frames with events the engine may send ahead.
        connect_timeout_s: how long a request waits for a connection.
        tls: absent for plaintext.
    """

    def __init__(
        self,
        target: str,
        *,
        peer_name: str,
        initial_credit: int = 64,
        connect_timeout_s: float = 5.0,
        tls: ClientTls | None = None,
    ) -> None:
        self._target = target
        self._channel = open_channel(target, tls=tls)
        self._stub = EngineServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        super().__init__(
            FrameMultiplexer(
                lambda: GrpcLink.open(self._channel),
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
        names = ("traceparent", "tracestate")
        metadata = [(name, value) for name in names if trace and (value := getattr(trace, name))]
        try:
            return await self._stub.Embed(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    async def model_info(self, model: str = "") -> GetModelInfoResponse:
        """See `client.EngineClient`."""
        try:
            return await self._stub.GetModelInfo(GetModelInfoRequest(model=model), timeout=_UNARY_TIMEOUT_S)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    async def tokenizer_files(self, model: str = "") -> TokenizerFiles:
        """See `client.EngineClient`."""
        call = self._stub.GetTokenizer(GetTokenizerRequest(model=model), timeout=_TOKENIZER_TIMEOUT_S)
        try:
            return join_chunks([chunk async for chunk in call])
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        finally:
            call.cancel()

    async def load(self) -> Load:
        """See `client.EngineClient`."""
        try:
            return (await self._stub.GetLoad(GetLoadRequest(), timeout=_UNARY_TIMEOUT_S)).load
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    async def serving(self, timeout_s: float = 2.0) -> bool:
        """Whether health says that the engine takes requests; False as well when nobody answers."""
        request = health_pb2.HealthCheckRequest(service=ENGINE_SERVICE)
        try:
            answer = await self._health.Check(request, timeout=timeout_s)
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
        await self._channel.close()
