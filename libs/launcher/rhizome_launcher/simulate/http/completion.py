"""What a completion request asks for."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from rhizome_launcher.simulate.request import TOKEN_BYTES

_MOST_TOKEN_ID: Final = 0xFFFFFFFF


class BadRequestError(ValueError):
    """A request that is wrong; the text says what is expected."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A request, understood.

    Attributes:
        chat: whether the answer is a chat completion.
        content: the prompt, `TOKEN_BYTES` a token.
        max_tokens: tokens to generate; `None` for the server's choice.
        seed: of the output; 0 where the same prompt gives the same text anyway.
        namespace: `cache_salt`, or empty.
        stream: whether the answer comes as events.
        include_usage: whether usage is the last of them.
    """

    chat: bool
    content: bytearray
    max_tokens: int | None
    seed: int
    namespace: str
    stream: bool
    include_usage: bool


def read_completion(
    body: bytes, *, model: str, block_size: int, chat: bool, continues_assistant: bool
) -> Completion:
    """Understand a request of /v1/chat/completions or /v1/completions.

    Beside OpenAI's fields there is `hash_ids`, as in the Mooncake traces: equal ids are equal blocks of
    `block_size` tokens at the start of the prompt, before its text; `input_length` cuts them to length.

    Args:
        body: JSON.
        model: what is served.
        block_size: tokens per block.
        chat: whether there are messages instead of a prompt.
        continues_assistant: a conversation that ends with the assistant's words is continued unasked.

    Raises:
        LookupError: another model is wanted.
        BadRequestError: it is wrong.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadRequestError("the body must be JSON") from None
    if not isinstance(fields, dict):
        raise BadRequestError("the body must be a JSON object")
    if fields.get("model") not in (None, "", model):
        raise LookupError
    if fields.get("n") not in (None, 1):
        raise BadRequestError("n must be 1: a simulated server gives one choice")
    content = _blocks(fields, block_size)
    content += _conversation(fields, continues_assistant) if chat else _prompt(fields)
    limit = fields.get("max_completion_tokens")
    stream_options = fields.get("stream_options") or {}
    greedy = fields.get("temperature") == 0
    return Completion(
        chat=chat,
        content=content,
        max_tokens=_count(fields.get("max_tokens") if limit is None else limit),
        seed=0 if greedy else _integer(fields.get("seed") or 0, "seed"),
        namespace=str(fields.get("cache_salt") or ""),
        stream=fields.get("stream") is True,
        include_usage=isinstance(stream_options, dict) and stream_options.get("include_usage") is True,
    )


def text_tokens(text: str) -> list[int]:
    """The token ids of a text: four bytes each, the last one filled up with zeros."""
    data = text.encode()
    data += bytes(-len(data) % TOKEN_BYTES)
    ids: list[int] = np.frombuffer(data, "<u4").tolist()
    return ids


def _blocks(fields: dict[str, Any], block_size: int) -> bytearray:
    hash_ids = fields.get("hash_ids")
    if hash_ids is None:
        return bytearray()
    blocks = np.frombuffer(_token_bytes(hash_ids, "hash_ids"), "<u4")
    tokens = np.repeat(blocks, block_size)
    length = _count(fields.get("input_length"))
    return bytearray(tokens[:length].tobytes())


def _prompt(fields: dict[str, Any]) -> bytes:
    prompt = fields.get("prompt", "")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt.encode()
    if isinstance(prompt, list):
        return _token_bytes(prompt, "prompt")
    raise BadRequestError("prompt must be a text or a list of token ids")


def _conversation(fields: dict[str, Any], continues_assistant: bool) -> bytes:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise BadRequestError("messages must be a list of at least one message")
    rendered = "".join(f"<|{message.get('role')}|>\n{_text(message)}\n" for message in messages)
    ends_with_assistant = messages[-1].get("role") == "assistant"
    if fields.get("continue_final_message") or (continues_assistant and ends_with_assistant):
        return rendered[:-1].encode()
    if fields.get("add_generation_prompt", True):
        rendered += "<|assistant|>\n"
    return rendered.encode()


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    raise BadRequestError("content must be a text or a list of parts")


def _token_bytes(ids: object, name: str) -> bytes:
    wrong = BadRequestError(f"{name} must be a list of whole numbers from 0 to 2^32 - 1")
    if not isinstance(ids, Sequence) or isinstance(ids, str):
        raise wrong
    try:
        return np.array(array("I", ids), "<u4").tobytes()
    except (TypeError, OverflowError):
        raise wrong from None


def _count(value: object) -> int | None:
    if value is None:
        return None
    count = _integer(value, "a number of tokens")
    if count < 0:
        raise BadRequestError("a number of tokens must be at least 0")
    return count


def _integer(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRequestError(f"{name} must be a whole number")
    return value
