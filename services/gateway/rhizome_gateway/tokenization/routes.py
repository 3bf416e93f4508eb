"""`POST /tokenize` and `POST /detokenize`, as vLLM has them."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from rhizome_gateway.auth.caller import caller_of
from rhizome_gateway.errors import ApiError
from rhizome_gateway.http.exchange import Exchange
from rhizome_gateway.openai.chat.request import ChatCompletionRequest
from rhizome_gateway.prompt.from_openai import chat_prompt
from rhizome_gateway.runtime import Runtime
from rhizome_gateway.schema.validation import read_request, validate
from rhizome_gateway.served_model import ServedModel
from rhizome_gateway.tokenization.naming import served_model
from rhizome_gateway.tokenization.request import DetokenizeRequest, TokenizeRequest

_MANY = 2048
"""Characters or tokens; fewer take less time than a hop to another thread."""


class Tokenize:
    """Text to tokens; nothing limits their number but the size of the request."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def __call__(self, exchange: Exchange) -> None:
        """Serve one request."""
        request, fields = await read_request(self._runtime, exchange, TokenizeRequest)
        served = served_model(self._runtime.session, caller_of(exchange.scope), request.model)
        if request.prompt is None:
            ids = await _conversation(served, fields)
            body = await _off_loop(len(ids), _tokens_body, served, request, ids)
        else:
            body = await _off_loop(len(request.prompt), _prompt_body, served, request, request.prompt)
        await exchange.send_json(200, body)


class Detokenize:
    """Tokens to text, special tokens included."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def __call__(self, exchange: Exchange) -> None:
        """Serve one request."""
        request, _ = await read_request(self._runtime, exchange, DetokenizeRequest)
        served = served_model(self._runtime.session, caller_of(exchange.scope), request.model)
        if max(request.tokens, default=0) >= served.info.vocab_size:
            raise ApiError(
                400,
                f"'tokens' has an id that this model does not have; ids are 0 to "
                f"{served.info.vocab_size - 1}.",
                code="invalid_value",
                param="tokens",
            )
        body = await _off_loop(len(request.tokens), _text_body, served, request.tokens)
        await exchange.send_json(200, body)


async def _conversation(served: ServedModel, fields: dict[str, Any]) -> list[int]:
    known = {name: fields[name] for name in TokenizeRequest.model_fields.keys() & fields.keys()}
    chat = validate(ChatCompletionRequest, known | {"model": served.info.model})
    prompt = await chat_prompt(served, chat, fields.get("tools") if chat.offered_tools else None)
    return list(prompt.token_ids)


def _prompt_body(served: ServedModel, request: TokenizeRequest, prompt: str) -> bytes:
    ids = served.tokenizer.encode(prompt, add_special_tokens=request.add_special_tokens is not False)
    return _tokens_body(served, request, ids)


def _tokens_body(served: ServedModel, request: TokenizeRequest, ids: list[int]) -> bytes:
    strings = [served.tokenizer.token_text(i) for i in ids] if request.return_token_strs else None
    limit = served.info.max_context_tokens
    return orjson.dumps({"count": len(ids), "max_model_len": limit, "tokens": ids, "token_strs": strings})


def _text_body(served: ServedModel, ids: list[int]) -> bytes:
    return orjson.dumps({"prompt": served.tokenizer.decode(ids, skip_special_tokens=False)})


async def _off_loop(size: int, write: Any, *arguments: Any) -> bytes:
    """Do it here, or in another thread where it is much."""
    body: bytes = write(*arguments) if size <= _MANY else await asyncio.to_thread(write, *arguments)
    return body
