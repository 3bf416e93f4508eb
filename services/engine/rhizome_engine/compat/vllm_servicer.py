"""vLLM's gRPC contract, `vllm.grpc.engine.VllmEngine`, as the front offers it beside its own.

Requests take the way of our own `Generate`. SMG, llm-d's endpoint picker and others speak this contract; the
messages come from the package `smg-grpc-proto`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
from smg_grpc_proto import vllm_engine_pb2 as vllm
from smg_grpc_proto import vllm_engine_pb2_grpc
from smg_grpc_proto.generated import common_pb2 as common

from rhizome.engine.v1.engine_service_pb2 import (
    AbortRequest,
    EmbedRequest,
    EmbedResponse,
    GetLoadRequest,
    GetLoadResponse,
    WatchKvEventsRequest,
    WatchKvEventsResponse,
)
from rhizome.engine.v1.generate_pb2 import GenerateRequest, TokenIds
from rhizome_engine.compat.merged_streams import merged
from rhizome_engine.compat.tokenizer_bundle import chunks, pack
from rhizome_engine.compat.vllm_facts import ModelFacts, loads, model_info, server_info
from rhizome_engine.compat.vllm_kv_stream import KvEventStream
from rhizome_engine.compat.vllm_request import cut_prompt, to_requests
from rhizome_engine.compat.vllm_response import Choice
from rhizome_engine.front.core_link import CoreLink
from rhizome_engine.front.text_generation import TextGeneration
from rhizome_engine.front.text_prompt import encode
from rhizome_telemetry.propagation import from_metadata, to_proto
from rhizome_transport.errors import EngineError
from rhizome_transport.kv_watch import watch_kv_events
from rhizome_transport.servicer import declined
from rhizome_transport.zmq_client import ZmqEngineClient

VLLM_ENGINE = "vllm.grpc.engine.VllmEngine"

Answer = TypeVar("Answer")
Context = grpc.aio.ServicerContext[Any, Any]


class VllmEngineService(vllm_engine_pb2_grpc.VllmEngineServicer):  # type: ignore[misc]
    """Answers as a vLLM server does, from our core.

    Args:
        link: gives the link to a serving core or raises EngineError.
        facts: of the model.
        is_serving: whether new requests are taken.
        max_batch_size: requests computed in one step.
        tell_tokens: whether callers may be told what is cached, which is other people's prompts.
    """

    def __init__(
        self,
        link: Callable[[], CoreLink],
        facts: ModelFacts,
        is_serving: Callable[[], bool],
        *,
        max_batch_size: int,
        tell_tokens: bool,
    ) -> None:
        self._link = link
        self._facts = facts
        self._is_serving = is_serving
        self._max_batch_size = max_batch_size
        self._tell_tokens = tell_tokens
        self._generation = TextGeneration(link, facts.tokenizer)
        self._started = time.time()
        self._last_request = 0.0
        self._bundle: tuple[str, bytes] | None = None

    async def Generate(  # noqa: N802
        self, request: vllm.GenerateRequest, context: Context
    ) -> AsyncGenerator[vllm.GenerateResponse, None]:
        """One request; several choices come interleaved."""
        self._last_request = time.time()
        prompt = await self._prompt(request)
        parent = from_metadata(context.invocation_metadata())
        trace = None if parent is None else to_proto(parent)
        timeout_s = context.time_remaining()
        stop_token_ids = frozenset(request.sampling_params.stop_token_ids)

        async def run(index: int, one: GenerateRequest) -> AsyncGenerator[vllm.GenerateResponse, None]:
            choice = Choice(index, stream=request.stream, prompt=prompt, stop_token_ids=stop_token_ids)
            events = self._generation.run(one, timeout_s=timeout_s, trace=trace)
            async with aclosing(events):
                async for event in events:
                    for response in choice.translate(event):
                        yield response

        requests = to_requests(request, prompt)
        async with aclosing(merged([run(index, one) for index, one in enumerate(requests)])) as responses:
            async for response in responses:
                yield response

    async def _prompt(self, request: vllm.GenerateRequest) -> list[int]:
        kind = request.WhichOneof("input")
        if kind == "tokenized":
            prompt = list(request.tokenized.input_ids)
        elif kind == "text":
            prompt = await encode(self._facts.tokenizer, request.text, add_special_tokens=True)
        else:
            text = "there is no input: set tokenized or text"
            raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, text, param="input")
        if not request.sampling_params.HasField("truncate_prompt_tokens"):
            return prompt
        info = await self._ask(lambda client: client.model_info())
        return cut_prompt(prompt, request.sampling_params, info.max_context_tokens)

    async def Embed(  # noqa: N802
        self, request: vllm.EmbedRequest, context: Context
    ) -> vllm.EmbedResponse:
        """One vector, pooled as the checkpoint wants it."""
        parent = from_metadata(context.invocation_metadata())
        embed = EmbedRequest(
            inputs=[TokenIds(ids=request.tokenized.input_ids)], request_id=request.request_id
        )
        payload, timeout_s = embed.SerializeToString(), context.time_remaining()
        trace = None if parent is None else to_proto(parent)
        parts = await self._ask(
            lambda client: client.call("Embed", payload, timeout_s=timeout_s, trace=trace)
        )
        answer = EmbedResponse.FromString(b"".join(parts))
        vector = answer.embeddings[0].values
        return vllm.EmbedResponse(
            embedding=vector, prompt_tokens=answer.usage.prompt_tokens, embedding_dim=len(vector)
        )

    async def HealthCheck(  # noqa: N802
        self, request: vllm.HealthCheckRequest, context: Context
    ) -> vllm.HealthCheckResponse:
        """Whether requests are taken now; that a model is loading is no error."""
        try:
            self._link()
        except EngineError as error:
            return vllm.HealthCheckResponse(healthy=False, message=error.message)
        if not self._is_serving():
            return vllm.HealthCheckResponse(healthy=False, message="the engine takes no new requests")
        return vllm.HealthCheckResponse(healthy=True, message="serving")

    async def Abort(  # noqa: N802
        self, request: vllm.AbortRequest, context: Context
    ) -> vllm.AbortResponse:
        """End requests by id; unknown ones are ignored, because they may just have ended."""
        with contextlib.suppress(EngineError):  # no core, nothing open
            for request_id in request.request_ids:
                await self._generation.abort(request_id)
            # What `Embed` began is known to the core by the caller's own id.
            payload = AbortRequest(request_ids=request.request_ids).SerializeToString()
            await self._ask(lambda client: client.call("Abort", payload))
        return vllm.AbortResponse()

    async def GetModelInfo(  # noqa: N802
        self, request: vllm.GetModelInfoRequest, context: Context
    ) -> vllm.GetModelInfoResponse:
        """What is served and within which limits."""
        return model_info(self._facts, await self._ask(lambda client: client.model_info()))

    async def GetServerInfo(  # noqa: N802
        self, request: vllm.GetServerInfoRequest, context: Context
    ) -> vllm.GetServerInfoResponse:
        """How long this server runs and how much it has to do."""
        info = await self._ask(lambda client: client.model_info())
        load = (await self._load()).load
        return server_info(info, load, self._started, self._last_request, self._max_batch_size)

    async def GetLoads(  # noqa: N802
        self, request: vllm.GetLoadsRequest, context: Context
    ) -> vllm.GetLoadsResponse:
        """How busy the engine is."""
        if request.dp_rank:
            text = f"there is one data-parallel rank, 0, not {request.dp_rank}"
            raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, text, param="dp_rank")
        info = await self._ask(lambda client: client.model_info())
        return loads((await self._load()).load, info.version, self._max_batch_size)

    async def GetTokenizer(  # noqa: N802
        self, request: common.GetTokenizerRequest, context: Context
    ) -> AsyncGenerator[common.GetTokenizerChunk, None]:
        """The tokenizer's files as one ZIP file in pieces."""
        tokenizer = await self._ask(lambda client: client.tokenizer_files())
        if self._bundle is None or self._bundle[0] != tokenizer.sha256:
            files = {**tokenizer.files, "config.json": self._facts.config_json}
            self._bundle = (tokenizer.sha256, await asyncio.to_thread(pack, files))
        for chunk in chunks(self._bundle[1]):
            yield chunk

    async def SubscribeKvEvents(  # noqa: N802
        self, request: common.SubscribeKvEventsRequest, context: Context
    ) -> AsyncGenerator[common.KvEventBatch, None]:
        """Changes of the prefix cache, a snapshot first."""
        if not self._tell_tokens:
            text = (
                "KV events hold the tokens of prompts, and this listener is reached from other hosts: start "
                "the engine with --expose-token-ids, --tls-client-ca or --token-file to have them told"
            )
            raise EngineError(grpc.StatusCode.UNIMPLEMENTED, text, reason="TOKEN_IDS_NOT_EXPOSED")

        def call(start: bytes) -> Awaitable[list[bytes]]:
            wanted = WatchKvEventsRequest.FromString(start)
            wanted.with_token_ids = True
            payload = wanted.SerializeToString()
            return self._ask(lambda client: client.call("WatchKvEvents", payload, timeout_s=None))

        stream = KvEventStream(request.start_sequence_number)
        async with aclosing(watch_kv_events(call)) as changes:
            async for message in changes:
                for batch in stream.batches(WatchKvEventsResponse.FromString(message)):
                    yield batch

    async def _load(self) -> GetLoadResponse:
        payload = GetLoadRequest().SerializeToString()
        answers = await self._ask(lambda client: client.call("GetLoad", payload))
        return GetLoadResponse.FromString(answers[0])

    async def _ask(self, call: Callable[[ZmqEngineClient], Awaitable[Answer]]) -> Answer:
        link = self._link()
        return await link.ask(call(link.client))


# Versions of the contract differ in what else they have; it is declined without a traceback in the log.
for _method in vllm.DESCRIPTOR.services_by_name["VllmEngine"].methods:
    if _method.name not in VllmEngineService.__dict__:
        setattr(VllmEngineService, _method.name, declined(f"{VLLM_ENGINE}/{_method.name}"))
