"""An engine without a model that gives every request tokens at a steady pace, and costs next to nothing.

    python -m rhizome_testing.metronome_engine --port 0 --endpoint ipc:///path --pace "rate 50"

It speaks the contract over gRPC (`Connect` and, one message per token, `Generate`) and over ZeroMQ at once,
with the tokenizer of a checkpoint. Its pace can be changed from outside: see `set_pace`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio

from rhizome.engine.v1.engine_service_pb2 import (
    GetLoadRequest,
    GetLoadResponse,
    GetModelInfoRequest,
    GetModelInfoResponse,
    GetTokenizerRequest,
    GetTokenizerResponse,
)
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub, add_EngineServiceServicer_to_server
from rhizome.engine.v1.frames_pb2 import ClientFrame
from rhizome.engine.v1.generate_pb2 import FINISH_REASON_LENGTH, GenerateRequest
from rhizome_testing.metronome import Metronome, Pace, marked_words
from rhizome_testing.metronome_conversation import MetronomeConversation, MetronomeModel
from rhizome_testing.metronome_peer import delta, finished, started, token_limit
from rhizome_testing.metronome_router import MetronomeRouter
from rhizome_text.tokenizer_files import read_tokenizer_files
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_server import EngineServicerBase, GrpcServer

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # not generic at run time

_CONTROL_SERVICE = "rhizome.testing.Metronome"
_CALL_TIMEOUT_S = 5.0


class MetronomeEngine(EngineServicerBase):
    """Serves over both transports. Must be made inside the running loop.

    Args:
        files: a checkpoint's tokenizer files.
        pace: when requests get tokens.
        endpoint: `ipc:///path` for ZeroMQ, in a private directory; none when empty.

    Attributes:
        metronome: gives the tokens and counts them.
        target: address for gRPC clients, once started.
    """

    def __init__(self, files: dict[str, bytes], pace: Pace, *, endpoint: str = "") -> None:
        self.metronome = Metronome(marked_words(files["tokenizer.json"]), pace)
        self._model = MetronomeModel(files, self.metronome.counts)
        self._router = MetronomeRouter(endpoint, self.metronome, self._model) if endpoint else None
        self._beat: asyncio.Task[None] | None = None
        self.target = ""

    async def start(self, address: str = "127.0.0.1:0") -> None:
        """Listen and begin to tick."""
        self._server = GrpcServer(address, service_names=(ENGINE_SERVICE,))
        self._server.add(add_EngineServiceServicer_to_server, self)
        # Bytes as they are, where the generated handlers would serialise a message.
        connect: Handler = grpc.stream_stream_rpc_method_handler(self._connect, ClientFrame.FromString, None)
        generate: Handler = grpc.unary_stream_rpc_method_handler(
            self._generate, GenerateRequest.FromString, None
        )
        self._server.add_handlers(ENGINE_SERVICE, {"Connect": connect, "Generate": generate})
        self._server.add_handlers(
            _CONTROL_SERVICE, {"SetPace": grpc.unary_unary_rpc_method_handler(self._set_pace, None, None)}
        )
        self.target = f"127.0.0.1:{await self._server.start()}"
        self._server.set_serving(ENGINE_SERVICE, True)
        self._beat = asyncio.create_task(self.metronome.beat())

    async def stop(self) -> None:
        """End everything, as an engine that is killed would."""
        if self._beat is not None:
            self._beat.cancel()
            await self._server.drain_and_stop(0)
        if self._router is not None:
            self._router.close()

    async def GetModelInfo(  # noqa: N802 - named by the contract
        self, request: GetModelInfoRequest, context: Context
    ) -> GetModelInfoResponse:
        """Describe a model that does not exist."""
        return self._model.info

    async def GetTokenizer(  # noqa: N802 - named by the contract
        self, request: GetTokenizerRequest, context: Context
    ) -> AsyncIterator[GetTokenizerResponse]:
        """Hand out the files."""
        for chunk in self._model.tokenizer:
            yield chunk

    async def GetLoad(  # noqa: N802 - named by the contract
        self, request: GetLoadRequest, context: Context
    ) -> GetLoadResponse:
        """Say how many requests are open and what was done."""
        return self._model.load()

    async def _connect(self, frames: AsyncIterator[ClientFrame], context: Context) -> AsyncIterator[bytes]:
        outgoing: asyncio.Queue[bytes | None] = asyncio.Queue()
        conversation = MetronomeConversation(self.metronome, self._model, outgoing.put_nowait)

        async def read() -> None:
            try:
                async for frame in frames:
                    conversation.take(frame)
            finally:
                outgoing.put_nowait(None)

        reading = asyncio.create_task(read())
        try:
            while (frame := await outgoing.get()) is not None:
                yield frame
        finally:
            conversation.close()
            reading.cancel()

    async def _generate(self, request: GenerateRequest, context: Context) -> AsyncIterator[bytes]:
        """One message per token."""
        metronome, counts = self.metronome, self.metronome.counts
        counts.begin()
        limit, completed = token_limit(request), False
        words = [delta((word,)).SerializeToString() for word in metronome.words]
        try:
            yield started(len(request.token_ids.ids)).SerializeToString()
            for word in itertools.islice(itertools.cycle(words), limit):
                await metronome.turn()
                counts.tokens += 1
                yield word
            completed = True
            yield finished(FINISH_REASON_LENGTH, len(request.token_ids.ids), limit).SerializeToString()
        finally:
            counts.end(completed=completed)

    async def _set_pace(self, request: bytes, context: Context) -> bytes:
        if self.metronome.counts.open:
            raise EngineError(
                grpc.StatusCode.FAILED_PRECONDITION, "requests are open; change the pace when they have ended"
            )
        try:
            self.metronome.pace = Pace.parse(request.decode())
        except ValueError as error:
            raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        return b""


def set_pace(target: str, pace: str) -> None:
    """Change the pace of the engine at `target`, as in `set_pace(target, "rate 50")`.

    Raises:
        grpc.RpcError: there are open requests, or it is no pace.
    """
    with grpc.insecure_channel(target) as channel:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{_CONTROL_SERVICE}/SetPace"
        )
        method(pace.encode(), timeout=_CALL_TIMEOUT_S)


def open_requests(target: str) -> int:
    """How many requests are open at the engine at `target`."""
    with grpc.insecure_channel(target) as channel:
        answer = EngineServiceStub(channel).GetLoad(GetLoadRequest(), timeout=_CALL_TIMEOUT_S)
    return int(answer.load.running_requests)


async def _serve(arguments: argparse.Namespace) -> None:
    engine = MetronomeEngine(
        read_tokenizer_files(arguments.model), arguments.pace, endpoint=arguments.endpoint
    )
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await engine.start(f"127.0.0.1:{arguments.port}")
    print(f"serving on {engine.target}", flush=True)  # noqa: T201 - read by whoever started this
    await stopping.wait()
    await engine.stop()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="An engine without a model, for measuring what is above it.")
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint, for its tokenizer")
    parser.add_argument("--port", type=int, default=0, help="for gRPC; 0 takes a free one")
    parser.add_argument("--endpoint", default="", help="ipc:///path for ZeroMQ, in a private directory")
    parser.add_argument("--pace", type=Pace.parse, default=Pace("rate"), help="`rate 50`, `saturate`, ...")
    asyncio.run(_serve(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
