"""The gRPC face of a `scripted_engine.ScriptedCore`: bytes in, bytes out, as an engine's front does it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import zmq

from rhizome.engine.v1.engine_service_pb2 import (
    GetLoadRequest,
    GetLoadResponse,
    GetModelInfoRequest,
    GetModelInfoResponse,
    GetTokenizerRequest,
    GetTokenizerResponse,
)
from rhizome.engine.v1.engine_service_pb2_grpc import add_EngineServiceServicer_to_server
from rhizome.engine.v1.generate_pb2 import GenerateRequest, GenerateResponse
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.dealer import DealerConnection
from rhizome_transport.grpc_server import EngineServicerBase, GrpcServer
from rhizome_transport.tokenizer_chunks import split_files
from rhizome_transport.zmq_client import ZmqEngineClient

Context = grpc.aio.ServicerContext[Any, Any]


class ScriptedFront(EngineServicerBase):
    """Serves on a free port. Must be made inside the running loop.

    Attributes:
        metadata: of every RPC that arrived, oldest first.
        server: the server kit in use.
    """

    def __init__(self, core_endpoint: str, address: str = "127.0.0.1:0") -> None:
        self.metadata: list[dict[str, str | bytes]] = []
        self.server = GrpcServer(address, service_names=(ENGINE_SERVICE,))
        self.target = ""
        self._core_endpoint = core_endpoint
        self._context = zmq.Context()
        self._core = ZmqEngineClient(core_endpoint, peer_name="scripted front")

    async def start(self) -> str:
        """Listen.

        Returns:
            The target to connect to.
        """
        connect: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(self._connect)
        self.server.add_handlers(ENGINE_SERVICE, {"Connect": connect})
        self.server.add(add_EngineServiceServicer_to_server, self)
        port = await self.server.start()
        self.server.set_serving(ENGINE_SERVICE, True)
        self.target = f"127.0.0.1:{port}"
        return self.target

    async def stop(self, grace_s: float = 0.0) -> None:
        """Stop listening and let go of the core."""
        await self.server.drain_and_stop(grace_s)
        await self._core.close()
        self._context.destroy(linger=0)

    async def _connect(self, frames: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        self.metadata.append(dict(context.invocation_metadata() or ()))
        core = DealerConnection(self._context, self._core_endpoint)

        async def pass_upwards() -> None:
            async for frame in frames:
                await core.send(frame)

        passing = asyncio.create_task(pass_upwards())
        try:
            while True:
                yield await core.receive()
        finally:
            passing.cancel()
            core.close()

    async def Generate(  # noqa: N802 - named by the contract
        self, request: GenerateRequest, context: Context
    ) -> AsyncIterator[GenerateResponse]:
        """Run one request."""
        async for event in self._core.generate(request, timeout_s=context.time_remaining()):
            yield event

    async def GetModelInfo(  # noqa: N802 - named by the contract
        self, request: GetModelInfoRequest, context: Context
    ) -> GetModelInfoResponse:
        """Describe the scripted model."""
        return await self._core.model_info(request.model)

    async def GetTokenizer(  # noqa: N802 - named by the contract
        self, request: GetTokenizerRequest, context: Context
    ) -> AsyncIterator[GetTokenizerResponse]:
        """Hand out the scripted files."""
        for chunk in split_files((await self._core.tokenizer_files(request.model)).files):
            yield chunk

    async def GetLoad(  # noqa: N802 - named by the contract
        self, request: GetLoadRequest, context: Context
    ) -> GetLoadResponse:
        """Say how busy the scripted core claims to be."""
        return GetLoadResponse(load=await self._core.load())
