"""`GET /tokenizer_info`: enough for a client without the checkpoint, such as lm-eval, to prepare prompts."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request

from rhizome_gateway.auth.caller import caller_of
from rhizome_gateway.engine_session import EngineSession
from rhizome_gateway.tokenization.naming import served_model
from rhizome_text.chat_template import ChatTemplateError

router = APIRouter(tags=["tokens"])


@router.get("/tokenizer_info", summary="Describe the tokenizer")
async def tokenizer_info(request: Request) -> dict[str, Any]:
    """Special tokens by their role, the chat template where there is one that can be used, and sizes."""
    session: EngineSession = request.app.state.session
    await session.catch_up()
    served = served_model(session, caller_of(request.scope), None)
    described: dict[str, Any] = {
        **served.tokenizer.special_tokens,
        "vocab_size": served.tokenizer.vocab_size,
        "model_max_length": served.info.max_context_tokens,
    }
    with suppress(ChatTemplateError):
        if (template := served.tokenizer.chat_template()) is not None:
            described["chat_template"] = template.source
    return described
