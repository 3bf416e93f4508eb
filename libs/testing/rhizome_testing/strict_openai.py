"""What may be in an answer of the OpenAI API: the models of the official SDK, read strictly.

The SDK itself takes almost anything: it does not validate, and so an integer where a string belongs reaches
the program that reads it. Here nothing is converted, every key is one of OpenAI's or one of `OURS`, keys that
the official document requires are there, and null stands only where OpenAI sends it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, NoReturn

from openai.types import Completion, CompletionUsage, CreateEmbeddingResponse, Embedding, Model
from openai.types import completion_choice as text_choice
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionTokenLogprob,
    chat_completion,
    chat_completion_chunk,
)
from openai.types.chat.chat_completion_token_logprob import TopLogprob
from openai.types.responses import (
    Response,
    ResponseCustomToolCall,
    ResponseFunctionCallArgumentsDoneEvent,
    response_text_delta_event,
    response_text_done_event,
)
from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

_MESSAGE_LIMIT = 2000


class EchoedLogprobs(text_choice.Logprobs):
    """The SDK leaves out that the first token of an echoed prompt has no log probability."""

    token_logprobs: list[float | None] | None = None  # type: ignore[assignment]
    top_logprobs: list[dict[str, float] | None] | None = None  # type: ignore[assignment]


class TextChoice(text_choice.CompletionChoice):
    """One choice of a completion."""

    logprobs: EchoedLogprobs | None = None


class TextCompletion(Completion):
    """The whole of a completion."""

    choices: list[TextChoice]  # type: ignore[assignment]


class TextChunkChoice(TextChoice):
    """The SDK has no type of its own for a chunk, whose choices have not all ended."""

    finish_reason: Literal["stop", "length", "content_filter"] | None  # type: ignore[assignment]


class TextChunk(Completion):
    """A chunk of a completion."""

    choices: list[TextChunkChoice]  # type: ignore[assignment]


def _float32s(text: str) -> str:
    try:
        if len(base64.b64decode(text, validate=True)) % 4 == 0:
            return text
    except binascii.Error:
        pass
    raise ValueError("not the base64 of 32-bit floats")


class AnyEmbedding(Embedding):
    """The SDK asks for base64 by default and decodes it before its own model sees it."""

    embedding: list[float] | Annotated[str, AfterValidator(_float32s)]  # type: ignore[assignment]


class Embeddings(CreateEmbeddingResponse):
    """Vectors in either encoding."""

    data: list[AnyEmbedding]  # type: ignore[assignment]


class ModelList(BaseModel):
    """What /v1/models answers; the SDK reads it as a page."""

    model_config = ConfigDict(extra="allow")
    object: Literal["list"]
    data: list[Model]


class ErrorObject(BaseModel):
    """All four keys are required, and the code is a string."""

    model_config = ConfigDict(extra="forbid")
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """The body of every refusal, and an event of a stream that breaks off."""

    model_config = ConfigDict(extra="forbid")
    error: ErrorObject


OURS: Mapping[type[BaseModel], frozenset[str]] = {
    ChatCompletion: frozenset({"performance"}),
    ChatCompletionChunk: frozenset({"performance"}),
    ChatCompletionMessage: frozenset({"reasoning", "reasoning_content"}),
    chat_completion_chunk.ChoiceDelta: frozenset({"reasoning", "reasoning_content"}),
    TextCompletion: frozenset({"performance"}),
    TextChunk: frozenset({"performance"}),
    Response: frozenset({"performance"}),
    Model: frozenset(
        {"root", "max_model_len", "architecture", "dtype", "parameters", "default_sampling"},
    ),
}
"""Keys that OpenAI does not have, and where they may be."""

_SCORED_TEXT = frozenset({"bytes"})
_UNLISTED: Mapping[type[BaseModel], frozenset[str]] = {
    Response: frozenset({"store"}),
    ResponseCustomToolCall: frozenset({"status"}),
    ResponseFunctionCallArgumentsDoneEvent: frozenset({"name"}),
    response_text_delta_event.Logprob: _SCORED_TEXT,
    response_text_delta_event.LogprobTopLogprob: _SCORED_TEXT,
    response_text_done_event.Logprob: _SCORED_TEXT,
    response_text_done_event.LogprobTopLogprob: _SCORED_TEXT,
}
"""Keys that the official document has, for this object or for the same thing in another place, and the SDK
lacks."""

_REQUIRED: Mapping[type[BaseModel], frozenset[str]] = {
    ChatCompletion: frozenset({"usage", "system_fingerprint"}),
    chat_completion.Choice: frozenset({"logprobs"}),
    ChatCompletionMessage: frozenset({"content", "refusal"}),
    ChatCompletionChunk: frozenset({"system_fingerprint"}),
    chat_completion_chunk.Choice: frozenset({"finish_reason"}),
    TextCompletion: frozenset({"usage", "system_fingerprint"}),
    TextChoice: frozenset({"logprobs"}),
    TextChunkChoice: frozenset({"logprobs"}),
    CompletionUsage: frozenset({"prompt_tokens_details", "completion_tokens_details"}),
}
"""Keys that the SDK's models would do without."""

_NULLABLE: Mapping[type[BaseModel], frozenset[str]] = {
    chat_completion.Choice: frozenset({"logprobs"}),
    chat_completion.ChoiceLogprobs: frozenset({"content", "refusal"}),
    ChatCompletionMessage: frozenset({"content", "refusal"}),
    ChatCompletionChunk: frozenset({"usage"}),
    chat_completion_chunk.Choice: frozenset({"logprobs", "finish_reason"}),
    chat_completion_chunk.ChoiceLogprobs: frozenset({"content", "refusal"}),
    chat_completion_chunk.ChoiceDelta: frozenset({"content", "refusal"}),
    ChatCompletionTokenLogprob: frozenset({"bytes"}),
    TopLogprob: frozenset({"bytes"}),
    TextChunk: frozenset({"usage"}),
    TextChoice: frozenset({"logprobs"}),
    TextChunkChoice: frozenset({"logprobs", "finish_reason"}),
    EchoedLogprobs: frozenset({"top_logprobs"}),
    ErrorObject: frozenset({"param", "code"}),
}
"""Where null may stand; the objects of the Responses API are full of it and are not looked at."""


def problems_of(model: type[BaseModel], body: bytes | str) -> list[str]:
    """What clients could stumble over in this JSON, as lines for a person; none where it is right."""
    try:
        json.loads(body, parse_constant=_not_a_number, object_pairs_hook=_keys_once)
        value = _adapter(model).validate_json(body, strict=True)
    except ValidationError as error:
        return [
            f"{_path(item['loc'])}: {item['msg']}"[:_MESSAGE_LIMIT]
            for item in error.errors(include_url=False, include_input=False)
        ]
    except ValueError as error:
        return [f"not JSON: {error}"[:_MESSAGE_LIMIT]]
    problems = list(_walk(value, model.__name__, _key_problems))
    if not model.__module__.startswith("openai.types.responses"):  # that API sends null everywhere
        problems += _walk(value, model.__name__, _null_problems)
    return problems


@lru_cache
def _adapter(model: type[BaseModel]) -> TypeAdapter[BaseModel]:
    return TypeAdapter(model)


def _path(places: tuple[int | str, ...]) -> str:
    return ".".join(map(str, places)) or "the whole"


def _not_a_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        raise ValueError(f"a key is there twice, among {', '.join(keys)}")
    return keys


def _walk(value: Any, place: str, look: Callable[[BaseModel, str], Iterator[str]]) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from look(value, place)
        for name in value.model_fields_set:
            yield from _walk(getattr(value, name), f"{place}.{name}", look)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk(item, f"{place}.{index}", look)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _walk(item, f"{place}.{name}", look)


def _key_problems(value: BaseModel, place: str) -> Iterator[str]:
    foreign = set(value.model_extra or ())
    foreign -= OURS.get(type(value), frozenset()) | _UNLISTED.get(type(value), frozenset())
    if foreign:
        yield f"{place}: {', '.join(sorted(foreign))} is neither OpenAI's nor listed as ours"
    missing = _REQUIRED.get(type(value), frozenset()) - value.model_fields_set
    if missing:
        yield f"{place}: {', '.join(sorted(missing))} is missing"


def _null_problems(value: BaseModel, place: str) -> Iterator[str]:
    nulls = {name for name in value.model_fields_set if getattr(value, name) is None}
    nulls -= _NULLABLE.get(type(value), frozenset())
    if nulls:
        yield f"{place}: {', '.join(sorted(nulls))} is null and should be left out"
