"""EngineService as the front offers it over gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from rhizome.engine.v1 import engine_service_pb2 as messages
from rhizome.engine.v1.generate_pb2 import GenerateRequest, GenerateResponse
from rhizome.engine.v1.load_pb2 import Load
from rhizome_engine.front.bridge import ConnectBridge
from rhizome_engine.front.core_link import CoreLink
from rhizome_engine.front.stream_limits import MOST_WATCHES, StreamLimits
from rhizome_engine.front.text_generation import TextGeneration
from rhizome_engine.front.text_prompt import MAX_TEXT_CHARS, decode, encode
from rhizome_telemetry.propagation import from_metadata, to_proto
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.client import TokenizerFiles
from rhizome_transport.errors import EngineError
from rhizome_transport.kv_watch import watch_kv_events
from rhizome_transport.load_watch import watch_load
from rhizome_transport.servicer import EngineServicerBase
from rhizome_transport.tokenizer_chunks import split_files
from rhizome_transport.zmq_client import ZmqEngineClient

Answer = TypeVar("Answer")
Context = grpc.aio.ServicerContext[Any, Any]


class EngineService(EngineServicerBase):
    """Answers from the core where the core knows, and itself where text is concerned.

    Args:
        link: gives the link to a serving core or raises EngineError.
        tokenizer: the model's.
        model: the name under which it is served.
    """

    def __init__(self, link: Callable[[], CoreLink], tokenizer: Tokenizer, model: str) -> None:
        self._link = link
        self._tokenizer = tokenizer
        self._model = model
        self._bridge = ConnectBridge(link)
        self._watches = StreamLimits(MOST_WATCHES, "Watch")
        self._tokenizer_of: tuple[CoreLink, TokenizerFiles] | None = None
        self._generation = TextGeneration(link, tokenizer)

    def raw_handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """`Connect`, `Embed` and `WatchKvEvents` without (de)serialisers: bytes come and go."""

        async def connect(requests: AsyncIterator[bytes], context: Context) -> None:
            await self._bridge.connect(context)

        return {
            "Connect": grpc.stream_stream_rpc_method_handler(connect),
            "Embed": grpc.unary_unary_rpc_method_handler(self._embed),
            "WatchKvEvents": grpc.unary_stream_rpc_method_handler(self._watch_kv_events),
        }

    async def _embed(self, request: bytes, context: Context) -> bytes:
        """Vectors, which only the core makes; megabytes of numbers are not read on the way."""
        parent = from_metadata(context.invocation_metadata())
        trace = None if parent is None else to_proto(parent)
        timeout_s = context.time_remaining()
        answers = await self._ask(
            lambda client: client.call("Embed", request, timeout_s=timeout_s, trace=trace)
        )
        return b"".join(answers)  # parts of one message

    async def _watch_kv_events(self, request: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        """Changes of the prefix cache, as the core tells them."""

        def call(start: bytes) -> Awaitable[list[bytes]]:
            return self._ask(lambda client: client.call("WatchKvEvents", start, timeout_s=None))

        try:
            start = messages.WatchKvEventsRequest.FromString(request)
        except DecodeError:
            problem = "the request of WatchKvEvents is no WatchKvEventsRequest"
            raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, problem) from None
        if start.with_token_ids:
            problem = "token ids are prompts, and are not told over gRPC: leave with_token_ids out"
            raise EngineError(grpc.StatusCode.PERMISSION_DENIED, problem, param="with_token_ids")
        with self._watches.one_of(context.peer()):
            async with aclosing(watch_kv_events(call, request)) as changes:
                async for message in changes:
                    yield message

    async def Generate(  # noqa: N802
        self, request: GenerateRequest, context: Context
    ) -> AsyncGenerator[GenerateResponse, None]:
        """One request of a person or a script."""
        parent = from_metadata(context.invocation_metadata())
        events = self._generation.run(
            request,
            timeout_s=context.time_remaining(),
            trace=None if parent is None else to_proto(parent),
        )
        async with aclosing(events):
            async for event in events:
                yield event

    async def Abort(  # noqa: N802
        self, request: messages.AbortRequest, context: Context
    ) -> messages.AbortResponse:
        """End requests by id, whichever peer sent them."""
        for request_id in request.request_ids:
            await self._generation.abort(request_id)
        await self._ask(lambda client: client.call("Abort", request.SerializeToString()))
        return messages.AbortResponse()

    async def GetModelInfo(  # noqa: N802
        self, request: messages.GetModelInfoRequest, context: Context
    ) -> messages.GetModelInfoResponse:
        """What is served and within which limits."""
        return await self._ask(lambda client: client.model_info(request.model))

    async def GetTokenizer(  # noqa: N802
        self, request: messages.GetTokenizerRequest, context: Context
    ) -> AsyncGenerator[messages.GetTokenizerResponse, None]:
        """The tokenizer's files in chunks."""
        self._check_model(request.model)
        link = self._link()
        if self._tokenizer_of is None or self._tokenizer_of[0] is not link:
            files = await link.ask(link.client.tokenizer_files(request.model))
            self._tokenizer_of = link, files  # for the next caller: thousands at once need one copy
        for chunk in split_files(self._tokenizer_of[1].files):
            yield chunk

    async def Tokenize(  # noqa: N802
        self, request: messages.TokenizeRequest, context: Context
    ) -> messages.TokenizeResponse:
        """Text to token ids."""
        self._check_model(request.model)
        special = request.add_special_tokens if request.HasField("add_special_tokens") else True
        ids = await encode(self._tokenizer, request.text, add_special_tokens=special)
        return messages.TokenizeResponse(token_ids=ids)

    async def Detokenize(  # noqa: N802
        self, request: messages.DetokenizeRequest, context: Context
    ) -> messages.DetokenizeResponse:
        """Token ids to text, special tokens included."""
        self._check_model(request.model)
        if len(request.token_ids) > MAX_TEXT_CHARS:
            problem = f"there are {len(request.token_ids)} token ids; at most {MAX_TEXT_CHARS} are taken"
            raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, problem, param="token_ids")
        bad = next((i for i in request.token_ids if i >= self._tokenizer.vocab_size), None)
        if bad is not None:
            problem = f"token id {bad} is outside the vocabulary of {self._tokenizer.vocab_size} tokens"
            raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, problem, param="token_ids")
        text = await decode(self._tokenizer, list(request.token_ids))
        return messages.DetokenizeResponse(text=text)

    async def GetLoad(  # noqa: N802
        self, request: messages.GetLoadRequest, context: Context
    ) -> messages.GetLoadResponse:
        """How busy the engine is."""
        return await self.load()

    async def WatchLoad(  # noqa: N802
        self, request: messages.WatchLoadRequest, context: Context
    ) -> AsyncGenerator[messages.WatchLoadResponse, None]:
        """The load now, and again whenever something beside its sequence number changed."""

        async def load_now() -> Load:
            return (await self.load()).load

        with self._watches.one_of(context.peer()):
            async with aclosing(watch_load(load_now, request)) as loads:
                async for response in loads:
                    yield response

    async def GetCacheTree(  # noqa: N802
        self, request: messages.GetCacheTreeRequest, context: Context
    ) -> messages.GetCacheTreeResponse:
        """The prefix cache as a tree; who comes over the network is not told anybody's tokens."""
        request.with_token_ids = False
        answers = await self._ask(lambda client: client.call("GetCacheTree", request.SerializeToString()))
        return messages.GetCacheTreeResponse.FromString(answers[0])

    async def load(self) -> messages.GetLoadResponse:
        """What the core says of its load now.

        Raises:
            EngineError: UNAVAILABLE, there is no core.
        """
        request = messages.GetLoadRequest().SerializeToString()
        answers = await self._ask(lambda client: client.call("GetLoad", request))
        return messages.GetLoadResponse.FromString(answers[0])

    async def _ask(self, call: Callable[[ZmqEngineClient], Awaitable[Answer]]) -> Answer:
        link = self._link()
        return await link.ask(call(link.client))

    def _check_model(self, name: str) -> None:
        if name not in ("", self._model):
            raise EngineError(
                grpc.StatusCode.NOT_FOUND,
                f"model {name!r} is not served here; this engine serves {self._model!r}",
                reason="MODEL_NOT_FOUND",
                param="model",
            )
