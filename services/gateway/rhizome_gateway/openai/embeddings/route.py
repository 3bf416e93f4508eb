"""`POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
import time

from rhizome.engine.v1.engine_service_pb2 import (
    POOLING_CLS,
    POOLING_LAST_TOKEN,
    POOLING_MEAN,
    POOLING_UNSPECIFIED,
    EmbedRequest,
    EmbedResponse,
)
from rhizome.engine.v1.generate_pb2 import TokenIds
from rhizome_gateway.asked import read_asked
from rhizome_gateway.auth.caller import caller_of
from rhizome_gateway.auth.guard import Permit
from rhizome_gateway.errors import ApiError
from rhizome_gateway.http.exchange import Exchange
from rhizome_gateway.openai.embeddings.rendering import embedding_list
from rhizome_gateway.openai.embeddings.request import EmbeddingRequest
from rhizome_gateway.prompt.context import check_context, kept_tokens
from rhizome_gateway.runtime import Runtime
from rhizome_gateway.served_model import ServedModel
from rhizome_gateway.tokenization.inputs import input_name, read_inputs
from rhizome_telemetry import semconv
from rhizome_telemetry.asgi import SCOPE_KEY
from rhizome_telemetry.propagation import to_proto
from rhizome_telemetry.random_ids import random_hex
from rhizome_telemetry.tracing import Span, SpanKind, start_span
from rhizome_transport.errors import EngineError

_POOLINGS = {None: POOLING_UNSPECIFIED, "mean": POOLING_MEAN, "last": POOLING_LAST_TOKEN, "cls": POOLING_CLS}

_MANY_NUMBERS = 65_536
"""Fewer are written faster than another thread is reached."""


class Embeddings:
    """Turns texts into vectors."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def __call__(self, exchange: Exchange) -> None:
        """Serve one request."""
        runtime = self._runtime
        asked = await read_asked(runtime, exchange, EmbeddingRequest)
        request, caller, served = asked.request, asked.caller, asked.served
        _check_dimensions(served, request)
        kept = kept_tokens(served, request.truncate_prompt_tokens, 0)
        inputs = await read_inputs(
            served,
            request.input,
            add_special_tokens=request.add_special_tokens is not False,
            field="input",
            keep=None if kept is None else slice(kept),
        )
        for place, one in enumerate(inputs):
            check_context(served, len(one.token_ids), 0, input_name("input", place, len(inputs)))
        wanted = EmbedRequest(
            request_id=f"embd-{random_hex()}",
            model=served.info.model,
            inputs=[TokenIds(ids=one.token_ids) for one in inputs],
            pooling=_POOLINGS[request.pooling],
            normalize=request.normalize,
            cache_namespace=caller.salted_namespace(request.cache_salt),
            tenant=caller.tenant,
            priority=caller.priority,
        )
        assert exchange.permit is not None
        exchange.permit.reserve(sum(len(one.token_ids) for one in inputs), 0)
        await self._answer(exchange, exchange.permit, request, wanted, asked.arrived)

    async def _answer(
        self,
        exchange: Exchange,
        permit: Permit,
        request: EmbeddingRequest,
        asked: EmbedRequest,
        arrived: float,
    ) -> None:
        tenant = caller_of(exchange.scope).tenant_name
        operation = semconv.OPERATION_EMBEDDINGS
        meter = self._runtime.metrics.generation(operation, asked.model, arrived, tenant)
        parent = exchange.scope.get(SCOPE_KEY)
        error = "cancelled"
        try:
            with start_span(
                f"{semconv.OPERATION_EMBEDDINGS} {asked.model}",
                kind=SpanKind.CLIENT,
                parent=parent.trace_parent if isinstance(parent, Span) else None,
            ) as span:
                if span.recording:
                    span.set_attributes(
                        {
                            semconv.GEN_AI_OPERATION_NAME: semconv.OPERATION_EMBEDDINGS,
                            semconv.GEN_AI_PROVIDER_NAME: semconv.PROVIDER_NAME,
                            semconv.GEN_AI_REQUEST_MODEL: request.model,
                            semconv.GEN_AI_RESPONSE_MODEL: asked.model,
                        }
                    )
                try:
                    response = await self._runtime.session.client.embed(
                        asked,
                        timeout_s=self._runtime.settings.request_timeout_s,
                        trace=to_proto(span.trace_parent, exchange.request_id),
                    )
                except EngineError as failure:
                    refusal = _refusal(exchange, failure)
                    error = refusal.code or "error"
                    raise refusal from failure
                tokens = response.usage.prompt_tokens
                permit.settle(tokens)
                meter.observe_prompts(tokens, response.usage.cached_tokens)
                if span.recording:
                    span.set_attributes({semconv.GEN_AI_USAGE_INPUT_TOKENS: tokens})
            await exchange.send_json(200, await _body(response, request))
            error = ""
        finally:
            meter.close(time.monotonic(), error)


def _check_dimensions(served: ServedModel, request: EmbeddingRequest) -> None:
    size = served.info.embedding_size
    if request.dimensions not in (None, size):
        raise ApiError(
            400,
            f"This model's vectors have {size} dimensions and cannot be shortened; leave dimensions out.",
            code="unsupported_parameter",
            param="dimensions",
        )


def _refusal(exchange: Exchange, failure: EngineError) -> ApiError:
    """The engine's error, with this API's name for the inputs."""
    error = exchange.failure(failure)
    if error.param is not None and error.param.startswith("inputs"):
        error.message = error.message.replace("inputs[", "input[")
        error.param = error.param.replace("inputs", "input", 1)
    return error


async def _body(response: EmbedResponse, request: EmbeddingRequest) -> bytes:
    base64 = request.encoding_format == "base64"
    if sum(len(embedding.values) for embedding in response.embeddings) <= _MANY_NUMBERS:
        return embedding_list(response, request.model, base64=base64)
    return await asyncio.to_thread(embedding_list, response, request.model, base64=base64)
