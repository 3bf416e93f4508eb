"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from rhizome_gateway.engine_session import EngineSession
from rhizome_gateway.errors import ApiError
from rhizome_gateway.http.body import read_json_body
from rhizome_gateway.openai.chat_completion import ChatCompletion, new_completion_id
from rhizome_gateway.openai.engine_request import engine_requests
from rhizome_gateway.openai.prompt import prompt_token_ids
from rhizome_gateway.openai.schema import ChatCompletionRequest
from rhizome_gateway.openai.validation import parse_json, validate
from rhizome_gateway.settings import GatewaySettings

router = APIRouter(tags=["chat"])

_BODY: dict[str, Any] = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatCompletionRequest"}}},
}


@router.post(
    "/v1/chat/completions",
    summary="Continue a conversation",
    openapi_extra={"requestBody": _BODY},
    response_class=Response,
)
async def create_chat_completion(request: Request) -> Response:
    """Answer the last message: one JSON object or, with `stream: true`, server-sent events."""
    settings: GatewaySettings = request.app.state.settings
    session: EngineSession = request.app.state.session
    body = await read_json_body(request, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
    fields = parse_json(body)
    asked = validate(ChatCompletionRequest, fields)
    if asked.num_choices > settings.max_choices:
        raise ApiError(400, f"n may be at most {settings.max_choices} here.", code="invalid_value", param="n")
    served = session.model(asked.model)
    tools = fields["tools"] if asked.offered_tools else None
    token_ids = await prompt_token_ids(served, asked, tools)
    completion_id = new_completion_id()
    return ChatCompletion(
        session.client,
        served,
        asked,
        engine_requests(
            asked,
            token_ids,
            model=served.info.model,
            request_id=completion_id,
            num_choices=asked.num_choices,
            max_tokens=asked.token_limit,
            top_logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
            vocab_size=served.info.vocab_size,
        ),
        completion_id=completion_id,
        keep_alive_s=settings.keep_alive_s,
        timeout_s=settings.request_timeout_s,
    )
