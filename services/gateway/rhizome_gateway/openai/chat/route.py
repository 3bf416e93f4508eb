"""`POST /v1/chat/completions`."""

from __future__ import annotations

from rhizome_gateway.asked import read_asked
from rhizome_gateway.generation.job import Job, run_job
from rhizome_gateway.http.exchange import Exchange
from rhizome_gateway.openai.annotated import annotated
from rhizome_gateway.openai.chat.plan import plan_chat
from rhizome_gateway.openai.chat.rendering import ChatRendering
from rhizome_gateway.openai.chat.request import ChatCompletionRequest
from rhizome_gateway.runtime import Runtime
from rhizome_telemetry import semconv
from rhizome_telemetry.random_ids import random_hex


class ChatCompletions:
    """Answers the last message of a conversation."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def __call__(self, exchange: Exchange) -> None:
        """Serve one request: one JSON object or, with `stream: true`, server-sent events."""
        runtime = self._runtime
        asked = await read_asked(runtime, exchange, ChatCompletionRequest)
        request, served = asked.request, asked.served
        completion_id = f"chatcmpl-{random_hex()}"
        planned = await plan_chat(
            runtime, asked.caller, served, request, asked.fields.get("tools"), completion_id
        )
        rendering = ChatRendering(completion_id, request, served)
        job = Job(
            semconv.OPERATION_CHAT,
            served,
            request.model,
            completion_id,
            request,
            request.token_limit,
            planned,
            request.num_choices,
            annotated(
                rendering, request, planned, request.num_choices, served.tokenizer, prompt_in_choices=False
            ),
            bool(request.stream),
            asked.arrived,
        )
        await run_job(runtime, exchange, job)
