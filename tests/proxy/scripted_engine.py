"""An engine on real sockets that does what a test says."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message_factory import GetMessageClass

from rhizome.engine.v1 import engine_service_pb2 as engine_pb2
from rhizome.engine.v1.frames_pb2 import (
    ClientFrame,
    EngineFrame,
    RequestEvent,
    Submit,
    Welcome,
)
from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_CANCELLED,
    GenerateRequest,
    GenerateResponse,
)
from rhizome.engine.v1.load_pb2 import Load
from rhizome_testing.request_events import delta_event, finished_event, refused_event, started_event
from rhizome_transport.channel import ENGINE_SERVICE, PROTOCOL_VERSION
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_server import GrpcServer

TOKENS = (5, 6, 7)


class EnginePeer:
    """A Connect stream as an engine sees it."""

    def __init__(self, engine: ScriptedEngine, context: Any) -> None:
        self.engine = engine
        self.context = context
        self.peer_name = ""
        self.credit = 0
        self.gone = False
        self._writing = asyncio.Lock()

    async def send(self, *events: RequestEvent, load: Load | None = None) -> bytes:
        """Send one frame; returns its bytes. Credit is counted, not waited for."""
        frame = EngineFrame(step=next(self.engine.steps), events=events, load=load)
        payload = frame.SerializeToString()
        self.credit -= bool(events)
        async with self._writing:
            await self.context.write(payload)
        return payload


Script = Callable[[EnginePeer, Submit], Coroutine[Any, Any, None]]


async def answer(peer: EnginePeer, submit: Submit) -> None:
    """The script of a healthy engine."""
    request_id = submit.request.request_id
    await peer.send(started_event(request_id))
    for token in TOKENS:
        await peer.send(delta_event(request_id, token))
    await peer.send(finished_event(request_id))


def refuse(error: EngineError) -> Script:
    async def script(peer: EnginePeer, submit: Submit) -> None:
        await peer.send(refused_event(submit.request.request_id, error))

    return script


async def hold(peer: EnginePeer, submit: Submit) -> None:
    """Take the request and say nothing."""


async def start_and_hold(peer: EnginePeer, submit: Submit) -> None:
    """Say that the request started, and nothing more."""
    await peer.send(started_event(submit.request.request_id))


@dataclass
class ScriptedEngine:
    """Speaks the contract; what it answers to a Submit is its script."""

    script: Script = answer
    model: str = "scripted"
    load: Load | None = None
    generate_error: EngineError | None = None
    generate_pause: asyncio.Event | None = None
    embed_error: EngineError | None = None
    embed_pause: asyncio.Event | None = None
    answers_cancel: bool = True
    port: int = 0
    submits: list[Submit] = field(default_factory=list)
    generates: list[tuple[GenerateRequest, dict[str, Any], float | None]] = field(default_factory=list)
    generate_cancelled: int = 0
    embeds: list[tuple[engine_pb2.EmbedRequest, dict[str, Any], float | None]] = field(default_factory=list)
    embed_cancelled: int = 0
    cancels: list[str] = field(default_factory=list)
    aborts: list[str] = field(default_factory=list)
    peers: list[EnginePeer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.steps = itertools.count(1)
        self._server: GrpcServer | None = None
        self.serving = False

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, after `kill` again on the same port."""
        self._server = GrpcServer(f"127.0.0.1:{self.port}", service_names=(ENGINE_SERVICE,))
        self._server.add_handlers(ENGINE_SERVICE, self._handlers())
        self.set_serving(True)
        self.port = await self._server.start()

    def set_serving(self, serving: bool) -> None:
        assert self._server is not None
        self.serving = serving
        self._server.set_serving(ENGINE_SERVICE, serving)

    async def kill(self) -> None:
        """Cut every connection."""
        if self._server is not None:
            await self._server._server.stop(None)
            self._server = None
            self.serving = False

    def _handlers(self) -> dict[str, Any]:
        """Connect in bytes, the rest as in the contract."""
        handlers: dict[str, Any] = {"Connect": grpc.stream_stream_rpc_method_handler(self._connect)}
        service = engine_pb2.DESCRIPTOR.services_by_name["EngineService"]
        for name in ("Generate", "Embed", "Abort", "GetModelInfo", "GetTokenizer", "GetLoad"):
            method = service.methods_by_name[name]
            kind = "unary_stream" if method.server_streaming else "unary_unary"
            handlers[name] = getattr(grpc, f"{kind}_rpc_method_handler")(
                getattr(self, name),
                request_deserializer=GetMessageClass(method.input_type).FromString,
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
        return handlers

    async def _connect(self, _frames: object, context: Any) -> None:
        peer = EnginePeer(self, context)
        self.peers.append(peer)
        tasks: list[asyncio.Task[None]] = []
        try:
            while isinstance(payload := await context.read(), bytes):
                frame = ClientFrame.FromString(payload)
                match frame.WhichOneof("frame"):
                    case "hello":
                        peer.peer_name, peer.credit = frame.hello.peer_name, frame.hello.initial_credit
                        welcome = Welcome(protocol_version=PROTOCOL_VERSION, instance_id="core")
                        await context.write(EngineFrame(welcome=welcome).SerializeToString())
                    case "submit":
                        self.submits.append(frame.submit)
                        tasks.append(asyncio.create_task(self.script(peer, frame.submit)))
                    case "cancel":
                        self.cancels.append(frame.cancel.request_id)
                        if self.answers_cancel:
                            await peer.send(finished_event(frame.cancel.request_id, FINISH_REASON_CANCELLED))
                    case "credit":
                        peer.credit += frame.credit.frames
        finally:
            peer.gone = True
            for task in tasks:
                task.cancel()

    async def Generate(self, request: GenerateRequest, context: Any) -> AsyncIterator[GenerateResponse]:  # noqa: N802
        metadata = dict(context.invocation_metadata())
        self.generates.append((request, metadata, context.time_remaining()))
        if self.generate_error is not None:
            raise self.generate_error
        try:
            if self.generate_pause is not None and request.request_id.startswith("silent"):
                await self.generate_pause.wait()
            yield started_event("").response
            if self.generate_pause is not None:
                await self.generate_pause.wait()
            for token in TOKENS:
                yield delta_event("", token).response
            yield finished_event("").response
        except asyncio.CancelledError:
            self.generate_cancelled += 1
            raise

    async def Embed(self, request: engine_pb2.EmbedRequest, context: Any) -> engine_pb2.EmbedResponse:  # noqa: N802
        self.embeds.append((request, dict(context.invocation_metadata()), context.time_remaining()))
        if self.embed_error is not None:
            raise self.embed_error
        try:
            if self.embed_pause is not None:
                await self.embed_pause.wait()
        except asyncio.CancelledError:
            self.embed_cancelled += 1
            raise
        vectors = [engine_pb2.Embedding(values=[len(one.ids), 0.5]) for one in request.inputs]
        return engine_pb2.EmbedResponse(embeddings=vectors)

    async def Abort(self, request: engine_pb2.AbortRequest, context: Any) -> engine_pb2.AbortResponse:  # noqa: N802
        self.aborts.extend(request.request_ids)
        return engine_pb2.AbortResponse()

    async def GetModelInfo(self, request: Any, context: Any) -> engine_pb2.GetModelInfoResponse:  # noqa: N802
        return engine_pb2.GetModelInfoResponse(model=self.model, instance_id="core")

    async def GetTokenizer(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[engine_pb2.GetTokenizerResponse]:
        for chunk in (b"ab", b"cd"):
            yield engine_pb2.GetTokenizerResponse(file_name="tokenizer.json", chunk=chunk, sha256="00")

    async def GetLoad(self, request: Any, context: Any) -> engine_pb2.GetLoadResponse:  # noqa: N802
        if self.load is None:
            raise EngineError(grpc.StatusCode.UNIMPLEMENTED, "no load here")
        return engine_pb2.GetLoadResponse(load=self.load)
