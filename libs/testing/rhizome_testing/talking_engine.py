"""An engine that says what a test tells it to say, over the real gRPC contract.

Its tokenizer has one token per byte (`byte_tokenizer`), so prompts and answers are plain text to a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from rhizome.common.v1.common_pb2 import Usage
from rhizome.engine.v1.engine_service_pb2 import (
    Embedding,
    EmbedRequest,
    EmbedResponse,
    GetLoadRequest,
    GetLoadResponse,
    GetModelInfoRequest,
    GetModelInfoResponse,
    GetTokenizerRequest,
    GetTokenizerResponse,
)
from rhizome.engine.v1.engine_service_pb2_grpc import add_EngineServiceServicer_to_server
from rhizome.engine.v1.frames_pb2 import ClientFrame, EngineFrame, Pong, RequestEvent, Submit, Welcome
from rhizome.engine.v1.generate_pb2 import (
    FinishReason,
    GenerateResponse,
    PromptLogprobs,
    RankedToken,
    Started,
    TokenDelta,
    TokenLogprob,
)
from rhizome.engine.v1.load_pb2 import Load
from rhizome_testing.byte_tokenizer import SPECIAL_TOKENS, write_byte_tokenizer
from rhizome_transport.channel import ENGINE_SERVICE, PROTOCOL_VERSION
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_server import EngineServicerBase, GrpcServer
from rhizome_transport.tls import ServerTls
from rhizome_transport.tokenizer_chunks import files_sha256, split_files

Context = grpc.aio.ServicerContext[Any, Any]

END_OF_TURN = SPECIAL_TOKENS["<|eot_id|>"]
EMBEDDING_SIZE = 4
_SCORES_AT_ONCE = 3
_NAMES = {token_id: name for name, token_id in SPECIAL_TOKENS.items()}


@dataclass(frozen=True)
class Say:
    """Generate a text, byte by byte, or all of it in one event; each byte is as likely as `logprob` says."""

    text: str | bytes
    at_once: bool = False
    logprob: float = -0.5


@dataclass(frozen=True)
class Pause:
    """Generate nothing for a while."""

    seconds: float


@dataclass(frozen=True)
class Until:
    """Generate nothing before something has happened."""

    happened: asyncio.Event


@dataclass(frozen=True)
class Hang:
    """Generate nothing until the request is cancelled."""


@dataclass(frozen=True)
class Refuse:
    """Fail; as the first step, before the request was even started."""

    error: EngineError


@dataclass(frozen=True)
class Finish:
    """End for another reason than the end of the turn."""

    reason: FinishReason.ValueType


Step = Say | Pause | Until | Hang | Refuse | Finish
Script = Callable[[str], Sequence[Step]]


@dataclass
class TalkingEngine(EngineServicerBase):
    """Serves on a free port. Use it as an asynchronous context manager.

    Attributes:
        script: what to do with a prompt, given as text.
        model: the served name.
        max_context_tokens: announced limit.
        files: the tokenizer's files; change them before the start, or with a new model name.
        begins: what has to happen before the engine says that it begins with a request; None for nothing.
        submits: what was asked, oldest first.
        embed_delay_s: how long Embed takes.
        embed_error: how Embed fails, where it is to.
        embeds: what Embed was asked, oldest first.
        embeds_cancelled: calls of Embed that were given up.
        load: what GetLoad answers; nothing is known of how busy it is unless a test says so.
        cancelled: ids of requests that were cancelled while they ran.
        target: address for clients.
        tls: how it shows who it is; absent for plaintext.
    """

    script: Script = lambda prompt: [Say("Hello!")]
    model: str = "talking-model"
    max_context_tokens: int = 512
    address: str = "127.0.0.1:0"
    files: dict[str, bytes] = field(default_factory=dict)
    begins: asyncio.Event | None = None
    submits: list[Submit] = field(default_factory=list)
    embed_delay_s: float = 0.0
    embed_error: EngineError | None = None
    embeds: list[EmbedRequest] = field(default_factory=list)
    embeds_cancelled: int = 0
    load: Load = field(default_factory=Load)
    cancelled: list[str] = field(default_factory=list)
    target: str = ""
    tls: ServerTls | None = None

    def __post_init__(self) -> None:
        """Make the tokenizer."""
        if not self.files:
            with tempfile.TemporaryDirectory() as folder:
                write_byte_tokenizer(Path(folder), vocab_size=300)
                self.files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    async def __aenter__(self) -> Self:
        self._server = GrpcServer(self.address, service_names=(ENGINE_SERVICE,), tls=self.tls)
        self._server.add(add_EngineServiceServicer_to_server, self)
        self.target = f"127.0.0.1:{await self._server.start()}"
        self._server.set_serving(ENGINE_SERVICE, True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.drain_and_stop(0)

    @property
    def prompts(self) -> list[str]:
        """The prompts that arrived, special tokens spelled out."""
        return [self._text(submit) for submit in self.submits]

    async def Connect(  # noqa: N802 - named by the contract
        self, frames: AsyncIterator[ClientFrame], context: Context
    ) -> AsyncIterator[EngineFrame]:
        """Run the requests of one peer."""
        outgoing: asyncio.Queue[EngineFrame | None] = asyncio.Queue()
        running: dict[str, asyncio.Task[None]] = {}

        async def read() -> None:
            async for frame in frames:
                if frame.HasField("hello"):
                    welcome = Welcome(protocol_version=PROTOCOL_VERSION, instance_id=f"{id(self)}")
                    outgoing.put_nowait(EngineFrame(welcome=welcome))
                elif frame.HasField("submit"):
                    self.submits.append(frame.submit)
                    run = self._run(frame.submit, outgoing)
                    running[frame.submit.request.request_id] = asyncio.create_task(run)
                elif frame.HasField("cancel"):
                    task = running.get(frame.cancel.request_id)
                    if task is not None:
                        task.cancel()
                elif frame.HasField("ping"):
                    outgoing.put_nowait(EngineFrame(pong=Pong(nonce=frame.ping.nonce)))
            outgoing.put_nowait(None)

        reading = asyncio.create_task(read())
        step = 0
        try:
            ended = False
            while not ended:
                step += 1
                waiting = [await outgoing.get()]
                while not outgoing.empty():
                    waiting.append(outgoing.get_nowait())
                frame = EngineFrame(step=step)  # one frame per step, as an engine does
                for part in waiting:
                    if part is None:
                        ended = True
                    else:
                        frame.MergeFrom(part)
                yield frame
        finally:
            for task in (reading, *running.values()):
                task.cancel()

    async def GetModelInfo(  # noqa: N802 - named by the contract
        self, request: GetModelInfoRequest, context: Context
    ) -> GetModelInfoResponse:
        """Describe a model that does not exist."""
        info = GetModelInfoResponse(
            model=self.model,
            instance_id=f"{id(self)}",
            architecture="TalkingForCausalLM",
            max_context_tokens=self.max_context_tokens,
            vocab_size=300,
            eos_token_ids=[END_OF_TURN],
            dtype="float32",
            device="cpu",
            tokenizer_sha256=files_sha256(self.files),
            version="0",
            embedding_size=EMBEDDING_SIZE,
        )
        info.default_sampling.temperature = 0.5
        return info

    async def GetTokenizer(  # noqa: N802 - named by the contract
        self, request: GetTokenizerRequest, context: Context
    ) -> AsyncIterator[GetTokenizerResponse]:
        """Hand out the files."""
        for chunk in split_files(self.files):
            yield chunk

    async def GetLoad(  # noqa: N802 - named by the contract
        self, request: GetLoadRequest, context: Context
    ) -> GetLoadResponse:
        """Say how busy it claims to be."""
        return GetLoadResponse(load=self.load)

    async def Embed(  # noqa: N802 - named by the contract
        self, request: EmbedRequest, context: Context
    ) -> EmbedResponse:
        """Vectors that tell what they are of: the number of tokens, the first, the last; and a third."""
        self.embeds.append(request)
        try:
            await asyncio.sleep(self.embed_delay_s)
        except asyncio.CancelledError:
            self.embeds_cancelled += 1
            raise
        if self.embed_error is not None:
            raise self.embed_error
        vectors = [(len(one.ids), one.ids[0], one.ids[-1], 1 / 3) for one in request.inputs]
        return EmbedResponse(
            embeddings=[Embedding(values=vector) for vector in vectors],
            usage=Usage(prompt_tokens=sum(len(one.ids) for one in request.inputs), cached_tokens=1),
        )

    async def _run(self, submit: Submit, outgoing: asyncio.Queue[EngineFrame | None]) -> None:
        request = submit.request
        prompt_tokens, said = len(request.token_ids.ids), 0
        reason = FinishReason.FINISH_REASON_STOP

        def emit(response: GenerateResponse) -> None:
            event = RequestEvent(
                request_id=request.request_id, response=response, final=response.HasField("finished")
            )
            outgoing.put_nowait(EngineFrame(events=[event]))

        try:
            steps = list(self.script(self._text(submit)))
            if self.begins is not None:
                await self.begins.wait()
            if not isinstance(steps[0], Refuse):
                emit(GenerateResponse(started=Started(prompt_tokens=prompt_tokens, cached_tokens=3)))
                for scores in _scores(submit):
                    emit(GenerateResponse(prompt_logprobs=scores))
            for step in steps:
                match step:
                    case Say():
                        for ids in _groups(step):
                            said += len(ids)
                            emit(GenerateResponse(delta=_delta(ids, submit, step.logprob)))
                            await asyncio.sleep(0)
                    case Pause():
                        await asyncio.sleep(step.seconds)
                    case Until():
                        await step.happened.wait()
                    case Hang():
                        await asyncio.Event().wait()
                    case Finish():
                        reason = step.reason
                    case Refuse():
                        event = RequestEvent(
                            request_id=request.request_id, status=step.error.to_status(), final=True
                        )
                        outgoing.put_nowait(EngineFrame(events=[event]))
                        return
        except asyncio.CancelledError:
            self.cancelled.append(request.request_id)
            reason = FinishReason.FINISH_REASON_CANCELLED
        finished = GenerateResponse()
        finished.finished.reason = reason
        finished.finished.usage.prompt_tokens = prompt_tokens
        finished.finished.usage.completion_tokens = said
        finished.finished.usage.cached_tokens = 3
        times = finished.finished.timings
        times.queue_time.FromMilliseconds(1)
        times.prefill_time.FromMilliseconds(20)
        times.time_to_first_token.FromMilliseconds(21)
        times.decode_time.FromMilliseconds(100)
        with contextlib.suppress(asyncio.CancelledError):
            emit(finished)

    def _text(self, submit: Submit) -> str:
        ids = submit.request.token_ids.ids
        raw = b"".join(bytes([i]) if i < 256 else _NAMES.get(i, "?").encode() for i in ids)
        return raw.decode("utf-8", "replace")


def _groups(step: Say) -> list[list[int]]:
    ids = list(step.text if isinstance(step.text, bytes) else step.text.encode())
    return [ids] if step.at_once else [[token_id] for token_id in ids]


def _scores(submit: Submit) -> list[PromptLogprobs]:
    """Log probabilities of the prompt, in pieces: of token 65, -0.65; its rivals follow it."""
    request = submit.request
    if not request.HasField("prompt_logprobs"):
        return []
    scores = [
        TokenLogprob(
            logprob=-token_id / 100,
            top=[
                RankedToken(token_id=token_id + 1 + place, logprob=-place)
                for place in range(request.prompt_logprobs)
            ],
        )
        for token_id in request.token_ids.ids[1:]
    ]
    starts = range(0, len(scores), _SCORES_AT_ONCE)
    return [PromptLogprobs(logprobs=scores[start : start + _SCORES_AT_ONCE]) for start in starts]


def _delta(ids: list[int], submit: Submit, logprob: float) -> TokenDelta:
    delta = TokenDelta(token_ids=ids)
    sampling = submit.request.sampling
    if sampling.HasField("top_logprobs"):
        for token_id in ids:
            rivals = [(token_id, logprob), (token_id + 1, float("-inf"))][: sampling.top_logprobs]
            top = [RankedToken(token_id=i, logprob=value) for i, value in rivals]
            delta.logprobs.append(TokenLogprob(logprob=logprob, top=top))
    return delta
