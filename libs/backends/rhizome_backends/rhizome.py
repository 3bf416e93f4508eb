"""Rhizome's own engines, and other proxies: EngineService over gRPC, messages left as bytes."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rhizome.engine.v1 import engine_service_pb2 as engine_pb2
from rhizome.engine.v1 import engine_service_pb2_grpc as engine_grpc
from rhizome.engine.v1.load_pb2 import Load
from rhizome_backends.base import EngineCall, Metadata, Probe
from rhizome_backends.rhizome_events import follow_engine
from rhizome_routing.prefix.index import PrefixIndex
from rhizome_transport.channel import ENGINE_SERVICE, open_channel
from rhizome_transport.errors import from_rpc_error
from rhizome_transport.grpc_connection import GrpcConnection, GrpcDialer
from rhizome_transport.tls import ClientTls
from rhizome_transport.tokens import Tokens


class RhizomeEngine:
    """One address that speaks EngineService; see `base.Engine`.

    Args:
        address: `host:port`.
        tls: absent for plaintext.
        tokens: what the engine wants to be shown, if it does.
    """

    kind = "rhizome"

    def __init__(self, address: str, *, tls: ClientTls | None = None, tokens: Tokens | None = None) -> None:
        self._channel = open_channel(address, tls=tls, tokens=tokens)
        self._dial = GrpcDialer(address, tls=tls, tokens=tokens)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._stub: engine_grpc.EngineServiceAsyncStub = engine_grpc.EngineServiceStub(self._channel)
        self._models: tuple[str, ...] = ()
        self._instance_id = ""

    async def probe(self, timeout_s: float) -> Probe:
        """Ask for health and load at once, and for the model's name when the engine is a new one."""
        check = health_pb2.HealthCheckRequest(service=ENGINE_SERVICE)
        asking_load = asyncio.create_task(self._load(timeout_s))
        try:
            health = await self._health.Check(check, timeout=timeout_s)
            load = await asking_load
        except grpc.aio.AioRpcError as failure:
            if failure.code() is grpc.StatusCode.NOT_FOUND:
                return Probe(serving=False, reason=f"it does not serve {ENGINE_SERVICE}")
            raise from_rpc_error(failure) from None
        finally:
            asking_load.cancel()
        if health.status != health_pb2.HealthCheckResponse.SERVING:
            status = health_pb2.HealthCheckResponse.ServingStatus.Name(health.status)
            return Probe(serving=False, reason=f"it answers {status}: the model is loading, draining or lost")
        return Probe(serving=True, load=load, models=await self._served_models(load, timeout_s))

    async def connect(self) -> GrpcConnection:
        """Open a connection with a Connect stream."""
        return await self._dial()

    def call(
        self, method: str, request: bytes, *, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> EngineCall:
        """Call any other method; on the wire a unary answer is a stream of one message."""
        call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
            f"/{ENGINE_SERVICE}/{method}"
        )
        return call(request, timeout=timeout_s, metadata=tuple(metadata))

    async def follow(self, index: PrefixIndex, name: str) -> None:
        """Read its KV events."""
        await follow_engine(index, name, self.call)

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def _load(self, timeout_s: float) -> Load | None:
        try:
            answer = await self._stub.GetLoad(engine_pb2.GetLoadRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return None
        return answer.load if answer.HasField("load") else None

    async def _served_models(self, load: Load | None, timeout_s: float) -> tuple[str, ...]:
        instance_id = load.instance_id if load is not None else ""
        if self._models and instance_id == self._instance_id:
            return self._models
        try:
            info = await self._stub.GetModelInfo(engine_pb2.GetModelInfoRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return ()
        self._models, self._instance_id = ((info.model,) if info.model else ()), instance_id
        return self._models
