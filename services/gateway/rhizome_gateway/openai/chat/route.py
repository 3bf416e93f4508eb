"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
import uuid

from rhizome_gateway.auth.caller import caller_of
from rhizome_gateway.generation.job import Job, run_job
from rhizome_gateway.http.exchange import Exchange
from rhizome_gateway.openai.chat.plan import plan_chat
from rhizome_gateway.openai.chat.rendering import ChatRendering
from rhizome_gateway.openai.chat.request import ChatCompletionRequest
from rhizome_gateway.runtime import Runtime
from rhizome_gateway.schema.validation import read_request
from rhizome_telemetry import semconv


class ChatCompletions:
    """Answers the last message of a conversation."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def __call__(self, exchange: Exchange) -> None:
        """Serve one request: one JSON object or, with `stream: true`, server-sent events."""
        runtime, arrived = self._runtime, time.monotonic()
        request, fields = await read_request(runtime, exchange, ChatCompletionRequest)
        caller = caller_of(exchange.scope)
        caller.require_model(request.model)
        served = runtime.session.model(request.model)
        completion_id = f"chatcmpl-{uuid.uuid4().hex}"
        job = Job(
            semconv.OPERATION_CHAT,
            served,
            request.model,
            completion_id,
            request,
            request.token_limit,
            await plan_chat(runtime, caller, served, request, fields.get("tools"), completion_id),
            request.num_choices,
            ChatRendering(completion_id, request, served),
            bool(request.stream),
            arrived,
        )
        await run_job(runtime, exchange, job)
