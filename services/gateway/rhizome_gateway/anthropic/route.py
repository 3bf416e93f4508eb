"""`POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from __future__ import annotations

import orjson

from rhizome_gateway.anthropic.rendering import MessageRendering
from rhizome_gateway.anthropic.request import CountTokensRequest, MessagesRequest
from rhizome_gateway.anthropic.translation import chat_request
from rhizome_gateway.asked import read_asked
from rhizome_gateway.generation.job import Job, run_job
from rhizome_gateway.http.exchange import Exchange
from rhizome_gateway.openai.chat.plan import plan_chat
from rhizome_gateway.prompt.from_openai import chat_prompt
from rhizome_gateway.runtime import Runtime
from rhizome_telemetry import semconv
from rhizome_telemetry.random_ids import random_hex


class Messages:
    """Answers the last message of a conversation."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def __call__(self, exchange: Exchange) -> None:
        """Serve one request: one JSON object or, with `stream: true`, server-sent events.

        `max_tokens` may be more than the context holds besides the prompt, as clients made for large models
        ask for: then the answer ends with the context, and says so.
        """
        runtime = self._runtime
        asked = await read_asked(runtime, exchange, MessagesRequest)
        request, served = asked.request, asked.served
        chat, tools = chat_request(request)
        message_id = f"msg_{random_hex()}"
        choices = await plan_chat(runtime, asked.caller, served, chat, tools, message_id)
        planned = choices[0].request
        room = served.info.max_context_tokens - planned.prompt_tokens
        max_tokens = planned.head.stop.max_tokens = min(request.max_tokens, room)
        thinking = request.thinking
        job = Job(
            semconv.OPERATION_CHAT,
            served,
            request.model,
            message_id,
            chat,
            max_tokens,
            choices,
            1,
            MessageRendering(
                message_id,
                request.model,
                request_id=exchange.request_id,
                fills_context=room < request.max_tokens,
                show_thinking=thinking is None or thinking.display != "omitted",
            ),
            bool(request.stream),
            asked.arrived,
        )
        await run_job(runtime, exchange, job)


class CountTokens:
    """Counts the tokens of a conversation, without an answer."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def __call__(self, exchange: Exchange) -> None:
        """Serve one request."""
        runtime = self._runtime
        asked = await read_asked(runtime, exchange, CountTokensRequest)
        chat, tools = chat_request(asked.request)
        prompt = await chat_prompt(asked.served, chat, tools if chat.offered_tools else None)
        await exchange.send_json(200, orjson.dumps({"input_tokens": len(prompt.token_ids)}))
