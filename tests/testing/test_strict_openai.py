"""The checks of OpenAI's answers can fail."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Model
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from rhizome_testing.strict_openai import (
    Embeddings,
    ErrorEnvelope,
    ModelList,
    TextCompletion,
    problems_of,
)
from rhizome_testing.strict_openai_stream import (
    chat_stream_problems,
    completion_stream_problems,
    response_stream_problems,
)

USAGE = {
    "prompt_tokens": 1,
    "completion_tokens": 1,
    "total_tokens": 2,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
HEAD = {"id": "x", "created": 1, "model": "m", "system_fingerprint": "fp"}
MESSAGE = {"role": "assistant", "content": "Hi", "refusal": None}
CHAT = HEAD | {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": MESSAGE, "logprobs": None, "finish_reason": "stop"}],
    "usage": USAGE,
    "performance": {"anything": 1},
}
TEXT = HEAD | {
    "object": "text_completion",
    "choices": [{"index": 0, "text": "Hi", "logprobs": None, "finish_reason": "stop"}],
    "usage": USAGE,
}
ERROR = {"error": {"message": "m", "type": "t", "param": None, "code": "c"}}


def changed(value: Any, path: str, new: Any) -> Any:
    """A copy with one place changed; `...` takes the key away."""
    copy = place = json.loads(json.dumps(value))
    *keys, last = (int(key) if key.isdigit() else key for key in path.split("."))
    for key in keys:
        place = place[key]
    if new is ...:
        del place[last]
    else:
        place[last] = new
    return copy


@pytest.mark.parametrize("model", [ChatCompletion, TextCompletion, ErrorEnvelope])
def test_right_answers_pass(model: Any) -> None:
    right = {ChatCompletion: CHAT, TextCompletion: TEXT, ErrorEnvelope: ERROR}[model]
    assert problems_of(model, json.dumps(right)) == []


@pytest.mark.parametrize(
    ("path", "new", "complaint"),
    [
        ("created", "1", "created"),
        ("created", 1.5, "created"),
        ("object", "chat.completions", "object"),
        ("id", ..., "id"),
        ("usage", ..., "usage is missing"),
        ("usage.total_tokens", "2", "total_tokens"),
        ("usage.prompt_tokens_details", ..., "prompt_tokens_details is missing"),
        ("system_fingerprint", None, "is null"),
        ("service_tier", None, "is null"),
        ("surprise", 1, "surprise is neither"),
        ("choices.0.surprise", 1, "surprise is neither"),
        ("choices.0.performance", {}, "performance is neither"),
        ("choices.0.logprobs", ..., "logprobs is missing"),
        ("choices.0.finish_reason", None, "finish_reason"),
        ("choices.0.finish_reason", "abort", "finish_reason"),
        ("choices.0.message.refusal", ..., "refusal is missing"),
        ("choices.0.message.tool_calls", None, "tool_calls is null"),
        ("choices.0.message.role", "user", "role"),
        ("choices.0.message.content", [{"type": "text", "text": "Hi"}], "content"),
        ("choices.0.message.tool_calls", [{"type": "function", "function": {"name": "f"}}], "tool_calls"),
        (
            "choices.0.message.tool_calls",
            [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}],
            "tool_calls",
        ),
    ],
)
def test_wrong_chats_fail(path: str, new: Any, complaint: str) -> None:
    problems = problems_of(ChatCompletion, json.dumps(changed(CHAT, path, new)))
    assert any(complaint in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ('{"id": "a", "id": "b"}', "twice"),
        ('{"created": NaN}', "NaN"),
        ('{"created": 1', "not JSON"),
        (b'{"id": "\xff"}', "not JSON"),
        ("[]", "the whole"),
    ],
)
def test_what_is_not_proper_json_fails(body: Any, complaint: str) -> None:
    (problem,) = problems_of(ChatCompletion, body)
    assert complaint in problem


@pytest.mark.parametrize(
    ("path", "new"),
    [
        ("error.code", 400),
        ("error.code", ...),
        ("error.param", ...),
        ("error.type", None),
        ("error.more", 1),
        ("detail", "x"),
        ("error", "Unauthorized"),
    ],
)
def test_wrong_errors_fail(path: str, new: Any) -> None:
    assert problems_of(ErrorEnvelope, json.dumps(changed(ERROR, path, new)))


def test_vectors_are_floats_or_their_base64() -> None:
    def answer(vector: Any) -> str:
        data = [{"object": "embedding", "index": 0, "embedding": vector}]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return json.dumps({"object": "list", "data": data, "model": "m", "usage": usage})

    assert not problems_of(Embeddings, answer([0.5, 1]))
    assert not problems_of(Embeddings, answer("AAAAAAAAgD8="))
    for wrong in ("AAAAAAAA", "not base64!", ["0.5"], None):
        assert problems_of(Embeddings, answer(wrong)), wrong


def test_an_echoed_prompt_may_begin_without_a_score() -> None:
    logprobs = {"tokens": ["a"], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}
    assert not problems_of(TextCompletion, json.dumps(changed(TEXT, "choices.0.logprobs", logprobs)))
    wrong = logprobs | {"text_offset": [None]}
    assert problems_of(TextCompletion, json.dumps(changed(TEXT, "choices.0.logprobs", wrong)))


def test_models_have_their_fields() -> None:
    model = {"id": "m", "object": "model", "created": 1, "owned_by": "o", "max_model_len": 5}
    assert not problems_of(Model, json.dumps(model))
    assert not problems_of(ModelList, json.dumps({"object": "list", "data": [model]}))
    assert problems_of(ModelList, json.dumps({"object": "list", "data": [model | {"created": 1.5}]}))
    assert problems_of(ModelList, json.dumps({"object": "list", "data": [model | {"path": "/home"}]}))


def test_a_response_without_its_fields_fails() -> None:
    assert problems_of(Response, json.dumps({"id": "r", "object": "response", "output": []}))


def chunk(delta: dict[str, Any], reason: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
    return HEAD | {"object": "chat.completion.chunk", "choices": [choice]} | fields


def body(*chunks: dict[str, Any] | str) -> bytes:
    return b"".join(
        f"data: {part if isinstance(part, str) else json.dumps(part)}\n\n".encode() for part in chunks
    )


ROLE = chunk({"role": "assistant", "content": "", "refusal": None})
HI = chunk({"content": "Hi"})
END = chunk({}, "stop")
LAST = HEAD | {"object": "chat.completion.chunk", "choices": [], "usage": USAGE}
CALL = {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}
MORE = {"index": 0, "function": {"arguments": "{}"}}


@pytest.mark.parametrize(
    "chunks",
    [
        (ROLE, HI, HI, END, "[DONE]"),
        (ROLE, HI, END, LAST, "[DONE]"),
        (ROLE, HI, ERROR, "[DONE]"),
        (
            ROLE,
            chunk({"role": "assistant"}, index=1),
            HI,
            END,
            chunk({"content": "a"}, index=1),
            chunk({}, "length", 1),
            "[DONE]",
        ),
        (
            ROLE,
            chunk({"tool_calls": [CALL]}),
            chunk({"tool_calls": [MORE]}),
            chunk({}, "tool_calls"),
            "[DONE]",
        ),
    ],
)
def test_right_streams_pass(chunks: Any) -> None:
    assert chat_stream_problems(b": keep-alive\n\n" + body(*chunks), complete=True) == []
    for size in range(len(body(*chunks))):  # a client may stop reading anywhere
        assert chat_stream_problems(body(*chunks)[:size], complete=False) == []


@pytest.mark.parametrize(
    ("chunks", "complaint"),
    [
        ((ROLE, HI, END), "without [DONE]"),
        ((ROLE, HI, "[DONE]"), "no finish_reason"),
        ((HI, END, "[DONE]"), "role"),
        ((ROLE, ROLE, END, "[DONE]"), "role"),
        ((ROLE, END, HI, "[DONE]"), "after its end"),
        ((ROLE, chunk({"content": "Hi"}, "stop"), "[DONE]"), "has content"),
        ((ROLE, END, LAST, LAST, "[DONE]"), "after the usage"),
        ((ROLE, END, "[DONE]", HI), "after [DONE]"),
        ((ROLE, HI | {"id": "y"}, END, "[DONE]"), "id changes"),
        ((ROLE, HI | {"created": 2}, END, "[DONE]"), "created changes"),
        ((ROLE, END | {"usage": USAGE}, "[DONE]"), "usage is in a chunk"),
        ((ROLE, chunk({"tool_calls": [MORE]}), END, "[DONE]"), "before it begins"),
        ((ROLE, chunk({"tool_calls": [CALL | {"index": 1}]}), END, "[DONE]"), "0 was next"),
        ((ROLE, chunk({"tool_calls": [CALL | {"type": None}]}), END, "[DONE]"), "null"),
        ((ROLE, chunk({"content": 5}), END, "[DONE]"), "content"),
        ((ROLE, {"error": {"message": "m"}}, "[DONE]"), "error.code"),
        ((ROLE, ERROR, HI, "[DONE]"), "after an error"),
        ((chunk({"role": "assistant"}, index=1), chunk({}, "stop", 1), "[DONE]"), "gaps"),
        (("[DONE]",), "no finish_reason"),
    ],
)
def test_wrong_streams_fail(chunks: Any, complaint: str) -> None:
    problems = chat_stream_problems(body(*chunks), complete=True)
    assert any(complaint in problem for problem in problems), problems


def test_lines_of_other_kinds_fail() -> None:
    assert chat_stream_problems(b"error: x\n\n", complete=False)
    assert chat_stream_problems(b"event: x\n\n", complete=False)


def test_streams_of_completions() -> None:
    def part(text: str, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        return HEAD | {"object": "text_completion", "choices": [choice]}

    assert not completion_stream_problems(body(part("a"), part("", "stop"), "[DONE]"), complete=True)
    assert completion_stream_problems(body(part("a"), "[DONE]"), complete=True)
    assert completion_stream_problems(body(CHAT, "[DONE]"), complete=True)


def test_events_of_responses_are_named_numbered_and_known() -> None:
    def event(kind: str, number: int, name: str | None = None) -> bytes:
        fields = {"type": kind, "sequence_number": number, "item_id": "i", "output_index": 0}
        fields |= {"content_index": 0, "delta": "a", "logprobs": []}
        return f"event: {name or kind}\ndata: {json.dumps(fields)}\n\n".encode()

    kind = "response.output_text.delta"

    def complaints(text: bytes, *, complete: bool = False) -> str:
        return "\n".join(response_stream_problems(text, complete=complete))

    assert complaints(event(kind, 0)) == f"event 0 is {kind}"
    assert "named" in complaints(event(kind, 0, "other"))
    assert "number 1" in complaints(event(kind, 1))
    assert "knows no event" in complaints(event("response.surprise", 0))
    assert "before the response does" in complaints(event(kind, 0), complete=True)
    assert "knows no event" in complaints(b"event: x\ndata: [DONE]\n\n")
