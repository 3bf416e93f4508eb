"""Text and messages to token ids, for people who talk to the engine without a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc

from rhizome.engine.v1.engine_admin_service_pb2 import WarmPrefixRequest
from rhizome.engine.v1.generate_pb2 import GenerateRequest, Messages
from rhizome_text.chat_prompt import Conversation
from rhizome_text.chat_template import ChatTemplateError
from rhizome_text.literal_encoder import LiteralTextError
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.errors import EngineError

MAX_TEXT_CHARS = 4 * 1024 * 1024
"""Of a text, of all messages together, of all bad words: as much as a gateway's largest body."""
_MAX_MESSAGES = 10_000
_MAX_WORDS = 1024
_ROLES = ("system", "user", "assistant", "tool")
_LONG_TEXT_CHARS = 4096
_MANY_TOKENS = 1024


async def prompt_ids(request: GenerateRequest | WarmPrefixRequest, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a request's input.

    Raises:
        EngineError: INVALID_ARGUMENT, when there is no input or the template refuses the conversation.
    """
    kind = request.WhichOneof("input")
    if kind == "token_ids":
        return list(request.token_ids.ids)
    if kind == "text":
        return await encode(tokenizer, request.text, add_special_tokens=True)
    if kind == "messages":
        return await asyncio.to_thread(_conversation_ids, request.messages, tokenizer)
    raise EngineError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "there is no input: set token_ids, text or messages",
        param="input",
    )


async def word_ids(words: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The token sequences that spell words, at the start of a text and after a space.

    Raises:
        EngineError: INVALID_ARGUMENT, a word is empty.
    """
    if not all(map(str.strip, words)):
        raise EngineError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "a bad word is empty or only spaces, and would ban every text; leave it out",
            param="sampling.bad_words",
        )
    if len(words) > _MAX_WORDS:
        problem = f"there are {len(words)} bad words; at most {_MAX_WORDS} are taken"
        raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, problem, param="sampling.bad_words")
    _check_length(sum(map(len, words)), "sampling.bad_words")
    bare = dict.fromkeys(word.lstrip() for word in words)
    spellings = [spelling for word in bare for spelling in (word, f" {word}")]
    if sum(map(len, spellings)) <= _LONG_TEXT_CHARS:
        sequences = [tokenizer.encode(spelling) for spelling in spellings]
    else:
        sequences = await asyncio.to_thread(lambda: [tokenizer.encode(spelling) for spelling in spellings])
    # Some tokenizers put a space before every text themselves: both spellings are one then.
    return [list(ids) for ids in dict.fromkeys(map(tuple, sequences)) if ids]


async def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Tokenise; long texts in a thread, so that other streams go on (the tokenizer gives up the GIL).

    Raises:
        EngineError: INVALID_ARGUMENT, it is longer than any prompt.
    """
    _check_length(len(text), "text")
    if len(text) <= _LONG_TEXT_CHARS:
        return tokenizer.encode(text, add_special_tokens)
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens)


async def decode(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    """Token ids to text, special tokens included; many of them in a thread, as in `encode`."""
    if len(token_ids) <= _MANY_TOKENS:
        return tokenizer.decode(token_ids, skip_special_tokens=False)
    return await asyncio.to_thread(tokenizer.decode, token_ids, skip_special_tokens=False)


def _conversation_ids(conversation: Messages, tokenizer: Tokenizer) -> list[int]:
    """Rendered and tokenised; special tokens that somebody wrote are text."""
    if len(conversation.messages) > _MAX_MESSAGES:
        problem = f"there are {len(conversation.messages)} messages; at most {_MAX_MESSAGES} are taken"
        raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, problem, param="messages")
    _check_length(sum(len(m.content) for m in conversation.messages), "messages")
    messages = [{"role": m.role, "content": m.content} for m in conversation.messages]
    prompts = tokenizer.chat_prompts()
    if prompts is None:
        problem = "this model has no chat template; send the prompt as text"
    elif not messages:
        problem = "messages is empty; at least one message is needed"
    elif unknown := [m["role"] for m in messages if m["role"] not in _ROLES]:
        problem = f"role must be one of {', '.join(_ROLES)}, not {unknown[0]!r}"
    else:
        try:
            return list(prompts.encode(prompts.render(Conversation(messages))))
        except (ChatTemplateError, LiteralTextError) as error:
            problem = str(error)
    raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, problem, param="messages")


def _check_length(chars: int, param: str) -> None:
    if chars > MAX_TEXT_CHARS:
        problem = f"{param} has {chars} characters; at most {MAX_TEXT_CHARS} are taken"
        raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, problem, param=param)
