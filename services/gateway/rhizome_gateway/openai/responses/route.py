"""`POST /v1/responses` and `POST /v1/responses/input_tokens`."""

from __future__ import annotations

import time
from collections.abc import Sequence

import orjson

from rhizome_gateway.auth.caller import caller_of
from rhizome_gateway.errors import ApiError
from rhizome_gateway.generation.job import Job, run_job
from rhizome_gateway.generation.lane import PlannedChoice
from rhizome_gateway.http.exchange import Exchange
from rhizome_gateway.openai.chat.plan import plan_chat
from rhizome_gateway.openai.responses.objects import new_id
from rhizome_gateway.openai.responses.rendering import ResponseRendering
from rhizome_gateway.openai.responses.request import InputTokensRequest, ResponsesRequest
from rhizome_gateway.openai.responses.response_object import ResponseObject
from rhizome_gateway.openai.responses.stream import OutputOptions
from rhizome_gateway.openai.responses.tools import left_out
from rhizome_gateway.openai.responses.translation import Translated, chat_request
from rhizome_gateway.runtime import Runtime
from rhizome_gateway.schema.ignored import HEADER, header_value
from rhizome_gateway.schema.validation import read_request
from rhizome_gateway.served_model import ServedModel
from rhizome_telemetry import semconv


class Responses:
    """Answers the last item of a conversation."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def __call__(self, exchange: Exchange) -> None:
        """Serve one request: one JSON object or, with `stream: true`, server-sent events."""
        runtime, arrived = self._runtime, time.monotonic()
        request, fields = await read_request(runtime, exchange, ResponsesRequest)
        response_id = new_id("resp")
        served, translated, choices = await _plan(runtime, exchange, request, response_id)
        options = OutputOptions(
            served.tokenizer,
            {tool.function_name: tool for tool in translated.callable_tools},
            request.carries_reasoning,
        )
        job = Job(
            semconv.OPERATION_CHAT,
            served,
            request.model,
            response_id,
            translated.chat,
            request.max_output_tokens,
            choices,
            1,
            ResponseRendering(ResponseObject(response_id, request, fields, served), options),
            bool(request.stream),
            arrived,
        )
        await run_job(runtime, exchange, job)


class InputTokens:
    """Counts the tokens of a conversation, without an answer."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def __call__(self, exchange: Exchange) -> None:
        """Serve one request."""
        request, _ = await read_request(self._runtime, exchange, InputTokensRequest)
        _, _, choices = await _plan(self._runtime, exchange, request, "")
        count = choices[0].request.prompt_tokens
        await exchange.send_json(
            200, orjson.dumps({"object": "response.input_tokens", "input_tokens": count})
        )


async def _plan(
    runtime: Runtime, exchange: Exchange, request: InputTokensRequest, response_id: str
) -> tuple[ServedModel, Translated, Sequence[PlannedChoice]]:
    """What both routes do.

    Raises:
        ApiError: the request cannot be served.
    """
    caller = caller_of(exchange.scope)
    caller.require_model(request.model)
    served = runtime.session.model(request.model)
    _tell_of_tools(runtime, exchange, request)
    translated = chat_request(request)
    try:
        choices = await plan_chat(
            runtime, caller, served, translated.chat, translated.shown_tools, response_id
        )
    except ApiError as error:
        raise translated.error(error) from error
    return served, translated, choices


def _tell_of_tools(runtime: Runtime, exchange: Exchange, request: InputTokensRequest) -> None:
    """Tools that OpenAI would run are left out, as fields that are not known are, and the client is told.

    Raises:
        ApiError: 400; where unknown fields are not taken.
    """
    types = left_out(request.tools or ())
    if not types:
        return
    if runtime.settings.strict_params:
        raise ApiError(
            400,
            "Tools must be of type 'function', 'custom' or 'namespace' here.",
            code="unsupported_parameter",
            param="tools",
        )
    runtime.metrics.ignored_parameter("other")
    known = [exchange.headers[HEADER]] if HEADER in exchange.headers else []
    exchange.headers[HEADER] = ", ".join([*known, header_value(f"tools.{kind}" for kind in types)])
