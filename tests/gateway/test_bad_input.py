import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.gateway.conftest import RunningGateway, running_gateway

from rhizome_testing.talking_engine import TalkingEngine
from rhizome_testing.time_bounds import assert_within_async

# One gateway for the whole table: each test also shows that it survived the one before.
pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD: dict[str, Any] = {"model": "talking-model", "messages": [{"role": "user", "content": "Hi"}]}
TOOL = {"type": "function", "function": {"name": "f"}}

INVALID = (400, "invalid_value")
UNSUPPORTED = (400, "unsupported_parameter")
TWO_WORDS = {"type": "function", "function": {"name": "a b"}}
TOO_LONG = (400, "context_length_exceeded")


def said(**message: Any) -> dict[str, Any]:
    return {"messages": [message]}


# name: (fields that replace those of a good request, status, code, param)
FIELDS: dict[str, tuple[Any, ...]] = {
    "unknown model": ({"model": "gpt-0"}, 404, "model_not_found", "model"),
    "no model": ({"model": None}, *INVALID, "model"),
    "model of a wrong type": ({"model": 7}, *INVALID, "model"),
    "no messages": ({"messages": []}, *INVALID, "messages"),
    "messages of a wrong type": ({"messages": "Hi"}, *INVALID, "messages"),
    "a message of a wrong type": ({"messages": ["Hi"]}, *INVALID, "messages[0]"),
    "a message without a role": (said(content="x"), 400, "missing_required_parameter", "messages[0].role"),
    "an unknown role": (said(role="king", content="x"), *INVALID, "messages[0].role"),
    "no content": (said(role="user"), *INVALID, "messages[0]"),
    "content of a wrong type": (said(role="user", content=5), *INVALID, "messages[0].content"),
    "an image": (
        said(role="user", content=[{"type": "image_url", "image_url": {"url": "http://x"}}]),
        400, "unsupported_content", "messages[0].content",
    ),
    "a broken part": (said(role="user", content=[{"type": "text"}]), *INVALID, "messages[0].content"),
    "a part that is no object": (said(role="user", content=["x"]), *INVALID, "messages[0].content"),
    "too long": (said(role="user", content="x" * 600), *TOO_LONG, "messages"),
    "much too long": (said(role="user", content="x" * 3_000_000), *TOO_LONG, "messages"),
    "too long with max_tokens": ({"max_tokens": 500}, *TOO_LONG, "messages"),
    "max_tokens 0": ({"max_tokens": 0}, *INVALID, "max_tokens"),
    "max_tokens huge": ({"max_tokens": 10**30}, *INVALID, "max_tokens"),
    "max_tokens a string": ({"max_tokens": "5"}, *INVALID, "max_tokens"),
    "max_tokens true": ({"max_tokens": True}, *INVALID, "max_tokens"),
    "max_completion_tokens a fraction": ({"max_completion_tokens": 1.5}, *INVALID, "max_completion_tokens"),
    "temperature too high": ({"temperature": 2.5}, *INVALID, "temperature"),
    "temperature negative": ({"temperature": -0.1}, *INVALID, "temperature"),
    "temperature a string": ({"temperature": "hot"}, *INVALID, "temperature"),
    "temperature beyond floats": ({"temperature": 10**400}, 400, "json_invalid", None),
    "top_p 0": ({"top_p": 0}, *INVALID, "top_p"),
    "top_k -2": ({"top_k": -2}, *INVALID, "top_k"),
    "min_p 2": ({"min_p": 2}, *INVALID, "min_p"),
    "repetition_penalty 0": ({"repetition_penalty": 0}, *INVALID, "repetition_penalty"),
    "frequency_penalty 3": ({"frequency_penalty": 3}, *INVALID, "frequency_penalty"),
    "presence_penalty -3": ({"presence_penalty": -3}, *INVALID, "presence_penalty"),
    "seed beyond int64": ({"seed": 2**63}, *INVALID, "seed"),
    "min_tokens beyond max_tokens": ({"min_tokens": 9, "max_tokens": 8}, *INVALID, "min_tokens"),
    "too many messages": ({"messages": GOOD["messages"] * 10_001}, *INVALID, "messages"),
    "n 0": ({"n": 0}, *INVALID, "n"),
    "n beyond the cap": ({"n": 9}, *INVALID, "n"),
    "n huge": ({"n": 10**9}, *INVALID, "n"),
    "a bias of a wrong key": ({"logit_bias": {"x": 1}}, *INVALID, "logit_bias"),
    "a bias outside of the vocabulary": ({"logit_bias": {"300": 1}}, *INVALID, "logit_bias"),
    "a bias too strong": ({"logit_bias": {"1": 101}}, *INVALID, "logit_bias"),
    "too many biases": ({"logit_bias": {str(i): 1 for i in range(1025)}}, *INVALID, "logit_bias"),
    "an allowed token outside of the vocabulary": (
        {"allowed_token_ids": [1, 300]}, *INVALID, "allowed_token_ids",
    ),
    "an allowed token below 0": ({"allowed_token_ids": [-1]}, *INVALID, "allowed_token_ids[0]"),
    "allowed tokens for too many": (
        {"allowed_token_ids": [1] * 200_000, "n": 8}, *INVALID, "allowed_token_ids",
    ),
    "a bad word of spaces": ({"bad_words": ["x", " "]}, *INVALID, "bad_words"),
    "a bad word of 65 tokens": ({"bad_words": ["x" * 65]}, *INVALID, "bad_words"),
    "a bad word beyond all": ({"bad_words": ["x" * 5000]}, *INVALID, "bad_words"),
    "bad words of too many tokens": ({"bad_words": [f"{i:05}" for i in range(400)]}, *INVALID, "bad_words"),
    "too many bad words": ({"bad_words": ["x"] * 513}, *INVALID, "bad_words"),
    "bad words as one text": ({"bad_words": "x"}, *INVALID, "bad_words"),
    "stop a number": ({"stop": 5}, *INVALID, "stop"),
    "too many stops": ({"stop": ["a"] * 17}, *INVALID, "stop"),
    "an empty stop": ({"stop": [""]}, *INVALID, "stop"),
    "a long stop": ({"stop": "a" * 257}, *INVALID, "stop"),
    "a negative stop token": ({"stop_token_ids": [-1]}, *INVALID, "stop_token_ids[0]"),
    "stream a string": ({"stream": "yes"}, *INVALID, "stream"),
    "stream_options without stream": ({"stream_options": {}}, *INVALID, "stream_options"),
    "top_logprobs without logprobs": ({"top_logprobs": 2}, *INVALID, "top_logprobs"),
    "top_logprobs 21": ({"logprobs": True, "top_logprobs": 21}, *INVALID, "top_logprobs"),
    "json_schema without one": ({"response_format": {"type": "json_schema"}}, *INVALID, "response_format"),
    "an unknown format": ({"response_format": {"type": "xml"}}, *INVALID, "response_format.type"),
    "a tool twice": ({"tools": [TOOL, TOOL]}, *INVALID, "tools"),
    "a tool that is not there": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        *INVALID,
        "tool_choice",
    ),
    "a choice among no tools": ({"tools": [], "tool_choice": "required"}, *INVALID, "tool_choice"),
    "a tool of a wrong type": ({"tools": [{"type": "retrieval"}]}, *INVALID, "tools[0].type"),
    "a bad tool name": ({"tools": [TWO_WORDS]}, *INVALID, "tools[0].function.name"),
    "a forced tool": ({"tools": [TOOL], "tool_choice": "required"}, *UNSUPPORTED, "tool_choice"),
    "an unknown tool_choice": ({"tools": [TOOL], "tool_choice": "x"}, *INVALID, "tool_choice"),
    "arguments that are no object": (
        said(role="assistant", tool_calls=[{"function": {"name": "f", "arguments": "[1"}}]),
        *INVALID, "messages[0].tool_calls[0].function.arguments",
    ),
    "audio": ({"modalities": ["text", "audio"]}, *UNSUPPORTED, "modalities"),
    "functions": ({"functions": [{"name": "f"}]}, *UNSUPPORTED, "functions"),
    "a template of one's own": ({"chat_template": "{{ 1 }}"}, *UNSUPPORTED, "chat_template"),
    "a variable not allowed": ({"chat_template_kwargs": {"tools": 1}}, *UNSUPPORTED, "chat_template_kwargs"),
}  # fmt: skip

BODIES: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 400, "json_invalid"),
    "broken JSON": (b'{"model": ', 400, "json_invalid"),
    "not an object": (b"[1, 2]", 400, "json_invalid"),
    "null": (b"null", 400, "json_invalid"),
    "NaN": (b'{"model": "talking-model", "temperature": NaN}', 400, "json_invalid"),
    "infinity": (b'{"model": "talking-model", "temperature": Infinity}', 400, "json_invalid"),
    "deep nesting": (b"[" * 100_000, 400, "json_invalid"),
    "a deep tool": (b'{"tools":' + b'{"a":' * 50_000, 400, "json_invalid"),
    "broken UTF-8": (b'{"model": "\xff"}', 400, "json_invalid"),
    "half a surrogate": (b'{"model": "\\ud800"}', 400, "json_invalid"),
    "a zero byte": (b"\0", 400, "json_invalid"),
    "a huge body": (b" " * (5 * 1024 * 1024), 413, "request_too_large"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_engine() -> AsyncIterator[TalkingEngine]:
    async with TalkingEngine() as engine:
        yield engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(shared_engine: TalkingEngine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(shared_engine.target) as gateway:
        await gateway.becomes_ready()
        yield gateway


@pytest.fixture
def engine(shared_engine: TalkingEngine) -> TalkingEngine:
    shared_engine.submits.clear()
    return shared_engine


def _check_envelope(answer: Any) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["code"], str | None)
    assert len(error["message"].encode()) <= 2048
    assert "Traceback" not in error["message"]
    return error


@pytest.mark.parametrize("name", FIELDS)
async def test_wrong_fields_are_named(gateway, engine: TalkingEngine, name: str) -> None:
    fields, status, code, param = FIELDS[name]

    async def ask() -> float:
        started = time.monotonic()
        answer = await gateway.http.post("/v1/chat/completions", json=GOOD | fields)
        took = time.monotonic() - started
        error = _check_envelope(answer)
        assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
        assert error["type"] == "invalid_request_error"
        return took

    await assert_within_async(1, ask)
    assert not engine.submits
    assert (await gateway.chat()).status_code == 200


@pytest.mark.parametrize("name", BODIES)
async def test_wrong_bodies_are_refused(gateway, engine: TalkingEngine, name: str) -> None:
    body, status, code = BODIES[name]

    async def ask() -> float:
        started = time.monotonic()
        answer = await gateway.http.post(
            "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )
        took = time.monotonic() - started
        assert (answer.status_code, _check_envelope(answer)["code"]) == (status, code)
        return took

    await assert_within_async(1, ask)
    assert (await gateway.chat()).status_code == 200


async def test_what_the_client_sent_is_not_repeated(gateway) -> None:
    secret = "sesame" * 1000
    for fields in (
        {"temperature": secret},
        {"messages": [{"role": secret, "content": "x"}]},
        {"model": secret},
        {"stop": {secret: 1}},
        {"logit_bias": {secret: 1}},
        {"logit_bias": {secret: secret}},
        {"response_format": {"type": secret}},
    ):
        answer = await gateway.http.post("/v1/chat/completions", json=GOOD | fields)
        assert answer.status_code in (400, 404)
        assert len(answer.content) < 1000
        assert "sesame" * 20 not in answer.text


async def test_a_huge_body_without_a_length_is_cut_off_while_it_comes(gateway) -> None:
    async def endless() -> Any:
        for _ in range(5 * 64):
            yield b" " * 16384

    answer = await gateway.http.post(
        "/v1/chat/completions", content=endless(), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 413
    assert (await gateway.chat()).status_code == 200


async def test_a_body_that_never_ends_times_out(engine: TalkingEngine, start_gateway) -> None:
    async with start_gateway(engine.target, body_timeout_s=0.2) as gateway:
        host, port = gateway.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: 100\r\n\r\n{"
        )
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
        assert b" 408 " in head
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "multipart/form-data", "application/x-www-form-urlencoded"]
)
async def test_other_content_types_are_refused(gateway, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    answer = await gateway.http.post("/v1/chat/completions", content=json.dumps(GOOD), headers=headers)
    assert answer.status_code == 415
    _check_envelope(answer)


async def test_json_with_a_charset_is_json(gateway) -> None:
    answer = await gateway.http.post(
        "/v1/chat/completions",
        content=json.dumps(GOOD),
        headers={"content-type": "application/json; charset=utf-8"},
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/assets/", "/assets/nothing", "/v1/nothing", "/v1/chat/completions/"),
        *("/v1/" + "x" * 5000, "/%00", "/v1/models/no/such"),
    ],
)
async def test_unknown_addresses_are_in_the_envelope(gateway, path: str) -> None:
    answer = await gateway.http.get(path)
    assert answer.status_code == 404
    assert len(answer.content) < 1000
    _check_envelope(answer)


async def test_wrong_methods_name_the_right_ones(gateway) -> None:
    answer = await gateway.http.get("/v1/chat/completions")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    _check_envelope(answer)
    assert (await gateway.http.delete("/v1/models")).headers["allow"] == "GET"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"x-long: " + b"a" * 100_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", 431),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 431),
        (b"NONSENSE\r\n\r\n", 400),
    ],
    ids=["a long header", "many headers", "a long URL", "not HTTP"],
)
async def test_requests_below_http_are_refused_in_the_envelope(
    gateway, request_bytes: bytes, status: int
) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request_bytes)
    answer = await asyncio.wait_for(reader.read(), 20)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]) == {"message", "type", "param", "code"}
    writer.close()
    assert (await gateway.chat()).status_code == 200
