"""Text and messages to token ids, for people who talk to the engine without a gateway."""

from __future__ import annotations

import asyncio

import grpc

from rhizome.engine.v1.generate_pb2 import GenerateRequest, TokenIds
from rhizome_text.chat_template import ChatTemplateError
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.errors import EngineError

_ROLES = ("system", "user", "assistant", "tool")
_LONG_TEXT_CHARS = 4096
_MANY_TOKENS = 1024


async def tokenised(request: GenerateRequest, tokenizer: Tokenizer) -> GenerateRequest:
    """A copy of `request` whose input is token ids.

    Raises:
        EngineError: INVALID_ARGUMENT, when there is no input or the template refuses the conversation.
    """
    kind = request.WhichOneof("input")
    ids: list[int]
    if kind == "token_ids":
        ids = list(request.token_ids.ids)
    elif kind == "text":
        ids = await encode(tokenizer, request.text, add_special_tokens=True)
    elif kind == "messages":
        ids = await encode(tokenizer, _render(request, tokenizer), add_special_tokens=False)
    else:
        raise EngineError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "there is no input: set token_ids, text or messages",
            param="input",
        )
    copy = GenerateRequest()
    copy.CopyFrom(request)
    copy.token_ids.CopyFrom(TokenIds(ids=ids))
    return copy


async def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Tokenise; long texts in a thread, so that other streams go on (the tokenizer gives up the GIL)."""
    if len(text) <= _LONG_TEXT_CHARS:
        return tokenizer.encode(text, add_special_tokens)
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens)


async def decode(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    """Token ids to text, special tokens included; many of them in a thread, as in `encode`."""
    if len(token_ids) <= _MANY_TOKENS:
        return tokenizer.decode(token_ids, skip_special_tokens=False)
    return await asyncio.to_thread(tokenizer.decode, token_ids, skip_special_tokens=False)


def _render(request: GenerateRequest, tokenizer: Tokenizer) -> str:
    messages = [{"role": m.role, "content": m.content} for m in request.messages.messages]
    template = tokenizer.chat_template()
    if template is None:
        problem = "this model has no chat template; send the prompt as text"
    elif not messages:
        problem = "messages is empty; at least one message is needed"
    elif unknown := [m["role"] for m in messages if m["role"] not in _ROLES]:
        problem = f"role must be one of {', '.join(_ROLES)}, not {unknown[0]!r}"
    else:
        try:
            return template.render(messages)
        except ChatTemplateError as error:
            problem = str(error)
    raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, problem, param="messages")
