"""A simulated engine of Rhizome on a gRPC port, and its failures on an HTTP port beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio

from rhizome.engine.v1.engine_service_pb2 import (
    GetLoadRequest,
    GetLoadResponse,
    GetModelInfoRequest,
    GetModelInfoResponse,
    GetTokenizerRequest,
    GetTokenizerResponse,
    WatchKvEventsRequest,
    WatchKvEventsResponse,
    WatchLoadRequest,
    WatchLoadResponse,
)
from rhizome.engine.v1.engine_service_pb2_grpc import add_EngineServiceServicer_to_server
from rhizome.engine.v1.frames_pb2 import ClientFrame
from rhizome.engine.v1.generate_pb2 import GenerateRequest, GenerateResponse
from rhizome.engine.v1.load_pb2 import Load
from rhizome_launcher.simulate.engine_service.core import EngineCore
from rhizome_launcher.simulate.engine_service.peer import Peer
from rhizome_launcher.simulate.http.administration import Administration
from rhizome_launcher.simulate.http.connection import Answer, Connection, HttpRequest
from rhizome_launcher.simulate.physics import Physics
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.grpc_server import EngineServicerBase, GrpcServer
from rhizome_transport.load_watch import watch_load

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # not generic at run time

_HTTP_FAULTS: Final = frozenset({"reset", "half_close", "slow_loris", "refuse_s", "metrics_missing"})


class EngineServer(EngineServicerBase):
    """Serves the contract. Must be made inside the running loop.

    Args:
        files: a checkpoint's tokenizer files.
        physics: how fast.
        model: served name.
        speed: simulated seconds per second.
        context_tokens: most tokens of prompt and output together.
        default_max_tokens: after so many the model has said all, where a request sets no limit.

    Attributes:
        core: the engine.
        port: of gRPC, once started.
        admin_port: of `/simulate`, once started.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        physics: Physics,
        *,
        model: str = "simulated",
        speed: float = 1.0,
        context_tokens: int = 131_072,
        default_max_tokens: int = 128,
    ) -> None:
        self.core = EngineCore(
            files,
            physics,
            model=model,
            speed=speed,
            context_tokens=context_tokens,
            default_max_tokens=default_max_tokens,
        )
        self.engine, self.heart = self.core.engine, self.core.heart
        self.administration = Administration(
            self.engine, self.heart, self.core.faults, changed=self._announce_health, missing=_HTTP_FAULTS
        )
        self.port = self.admin_port = 0
        self._connections: set[Connection] = set()
        self._server: GrpcServer | None = None
        self._listener: asyncio.Server | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen.

        Raises:
            OSError: the port is taken.
        """
        self._server = GrpcServer(f"{host}:{port}", service_names=(ENGINE_SERVICE,))
        self._server.add(add_EngineServiceServicer_to_server, self)
        # Bytes as they are, where the generated handler would serialise a message.
        connect: Handler = grpc.stream_stream_rpc_method_handler(self._connect, ClientFrame.FromString, None)
        self._server.add_handlers(ENGINE_SERVICE, {"Connect": connect})
        self.port = await self._server.start()
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: Connection(self._administer, self._connections), host, 0
        )
        self.admin_port = self._listener.sockets[0].getsockname()[1]
        self._announce_health()

    async def stop(self) -> None:
        """End everything, as an engine that is killed would."""
        if self._listener is not None:
            self._listener.close()
        for connection in tuple(self._connections):
            connection.abort()
        self.heart.stop()
        if self._server is not None:
            await self._server.drain_and_stop(0)

    async def Generate(  # noqa: N802 - named by the contract
        self, request: GenerateRequest, context: Context
    ) -> AsyncIterator[GenerateResponse]:
        """One request; token ids only."""
        news = asyncio.Event()
        sink = self.core.sink(request, lambda _: news.set())
        simulated = self.core.submit(request, sink)
        try:
            while True:
                await news.wait()
                news.clear()
                ended = sink.last is not None
                for response in sink.take():
                    yield response
                if ended:
                    return
        finally:
            self.engine.cancel(simulated)

    async def GetModelInfo(  # noqa: N802 - named by the contract
        self, request: GetModelInfoRequest, context: Context
    ) -> GetModelInfoResponse:
        """Describe a model that does not exist."""
        return self.core.info

    async def GetTokenizer(  # noqa: N802 - named by the contract
        self, request: GetTokenizerRequest, context: Context
    ) -> AsyncIterator[GetTokenizerResponse]:
        """Hand out the files."""
        for chunk in self.core.tokenizer:
            yield chunk

    async def GetLoad(  # noqa: N802 - named by the contract
        self, request: GetLoadRequest, context: Context
    ) -> GetLoadResponse:
        """How busy it is."""
        return GetLoadResponse(load=self.core.load())

    async def WatchLoad(  # noqa: N802 - named by the contract
        self, request: WatchLoadRequest, context: Context
    ) -> AsyncIterator[WatchLoadResponse]:
        """How busy it is, again and again."""

        async def load() -> Load:
            return self.core.load()

        async for response in watch_load(load, request):
            yield response

    async def WatchKvEvents(  # noqa: N802 - named by the contract
        self, request: WatchKvEventsRequest, context: Context
    ) -> AsyncIterator[WatchKvEventsResponse]:
        """A snapshot, and every change after it. Nothing is kept, so each watch begins with a snapshot."""
        news: asyncio.Queue[WatchKvEventsResponse] = asyncio.Queue()
        news.put_nowait(self.core.kv_snapshot())
        self.core.kv_watchers.add(news.put_nowait)
        try:
            while True:
                yield await news.get()
        finally:
            self.core.kv_watchers.discard(news.put_nowait)

    async def _connect(self, frames: AsyncIterator[ClientFrame], context: Context) -> AsyncIterator[bytes]:
        outgoing: asyncio.Queue[bytes | None] = asyncio.Queue()
        peer = Peer(self.core, outgoing.put_nowait)

        async def read() -> None:
            try:
                async for frame in frames:
                    peer.take(frame)
            finally:
                outgoing.put_nowait(None)

        reading = asyncio.create_task(read())
        try:
            while (frame := await outgoing.get()) is not None:
                yield frame
        finally:
            peer.close()
            reading.cancel()

    def _announce_health(self) -> None:
        if self._server is not None:
            self._server.set_serving(ENGINE_SERVICE, not self.core.faults.unhealthy)

    def _administer(self, connection: Connection, request: HttpRequest) -> None:
        if request.path == "/simulate":
            connection.respond(self.administration.answer(request))
        else:
            connection.respond(Answer.error(404, "there is /simulate here and nothing else", "not_found"))
