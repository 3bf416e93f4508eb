import asyncio
import json
import time
from typing import Any

import pytest

from rhizome_testing.talking_engine import TalkingEngine

GOOD: dict[str, Any] = {"model": "talking-model", "messages": [{"role": "user", "content": "Hi"}]}
TOOL = {"type": "function", "function": {"name": "f"}}

# name: (fields that replace those of a good request, status, code, param)
FIELDS: dict[str, tuple[dict[str, Any], int, str, str | None]] = {
    "unknown model": ({"model": "gpt-0"}, 404, "model_not_found", "model"),
    "no model": ({"model": None}, 400, "invalid_value", "model"),
    "model of a wrong type": ({"model": 7}, 400, "invalid_value", "model"),
    "no messages": ({"messages": []}, 400, "invalid_value", "messages"),
    "messages of a wrong type": ({"messages": "Hi"}, 400, "invalid_value", "messages"),
    "a message of a wrong type": ({"messages": ["Hi"]}, 400, "invalid_value", "messages[0]"),
    "a message without a role": ({"messages": [{"content": "x"}]}, 400, "missing_required_parameter", "messages[0].role"),
    "an unknown role": ({"messages": [{"role": "king", "content": "x"}]}, 400, "invalid_value", "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, 400, "invalid_value", "messages[0]"),
    "content of a wrong type": ({"messages": [{"role": "user", "content": 5}]}, 400, "invalid_value", "messages[0].content"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
        400, "unsupported_content", "messages[0].content",
    ),
    "a broken part": ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "invalid_value", "messages[0].content"),
    "a part that is no object": ({"messages": [{"role": "user", "content": ["x"]}]}, 400, "invalid_value", "messages[0].content"),
    "too long": ({"messages": [{"role": "user", "content": "x" * 600}]}, 400, "context_length_exceeded", "messages"),
    "much too long": ({"messages": [{"role": "user", "content": "x" * 3_000_000}]}, 400, "context_length_exceeded", "messages"),
    "too long with max_tokens": ({"max_tokens": 500}, 400, "context_length_exceeded", "messages"),
    "max_tokens 0": ({"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    "max_tokens huge": ({"max_tokens": 10**30}, 400, "invalid_value", "max_tokens"),
    "max_tokens a string": ({"max_tokens": "5"}, 400, "invalid_value", "max_tokens"),
    "max_tokens true": ({"max_tokens": True}, 400, "invalid_value", "max_tokens"),
    "max_completion_tokens a fraction": ({"max_completion_tokens": 1.5}, 400, "invalid_value", "max_completion_tokens"),
    "temperature too high": ({"temperature": 2.5}, 400, "invalid_value", "temperature"),
    "temperature negative": ({"temperature": -0.1}, 400, "invalid_value", "temperature"),
    "temperature a string": ({"temperature": "hot"}, 400, "invalid_value", "temperature"),
    "temperature beyond floats": ({"temperature": 10**400}, 400, "invalid_value", "temperature"),
    "top_p 0": ({"top_p": 0}, 400, "invalid_value", "top_p"),
    "top_k -2": ({"top_k": -2}, 400, "invalid_value", "top_k"),
    "min_p 2": ({"min_p": 2}, 400, "invalid_value", "min_p"),
    "repetition_penalty 0": ({"repetition_penalty": 0}, 400, "invalid_value", "repetition_penalty"),
    "frequency_penalty 3": ({"frequency_penalty": 3}, 400, "invalid_value", "frequency_penalty"),
    "presence_penalty -3": ({"presence_penalty": -3}, 400, "invalid_value", "presence_penalty"),
    "seed beyond int64": ({"seed": 2**63}, 400, "invalid_value", "seed"),
    "n 0": ({"n": 0}, 400, "invalid_value", "n"),
    "n beyond the cap": ({"n": 9}, 400, "invalid_value", "n"),
    "n huge": ({"n": 10**9}, 400, "invalid_value", "n"),
    "a bias of a wrong key": ({"logit_bias": {"x": 1}}, 400, "invalid_value", "logit_bias"),
    "a bias outside of the vocabulary": ({"logit_bias": {"300": 1}}, 400, "invalid_value", "logit_bias"),
    "a bias too strong": ({"logit_bias": {"1": 101}}, 400, "invalid_value", "logit_bias.1"),
    "too many biases": ({"logit_bias": {str(i): 1 for i in range(1025)}}, 400, "invalid_value", "logit_bias"),
    "stop a number": ({"stop": 5}, 400, "invalid_value", "stop"),
    "too many stops": ({"stop": ["a"] * 17}, 400, "invalid_value", "stop"),
    "an empty stop": ({"stop": [""]}, 400, "invalid_value", "stop"),
    "a long stop": ({"stop": "a" * 257}, 400, "invalid_value", "stop"),
    "a negative stop token": ({"stop_token_ids": [-1]}, 400, "invalid_value", "stop_token_ids[0]"),
    "stream a string": ({"stream": "yes"}, 400, "invalid_value", "stream"),
    "stream_options without stream": ({"stream_options": {"include_usage": True}}, 400, "invalid_value", "stream_options"),
    "top_logprobs without logprobs": ({"top_logprobs": 2}, 400, "invalid_value", "top_logprobs"),
    "top_logprobs 21": ({"logprobs": True, "top_logprobs": 21}, 400, "invalid_value", "top_logprobs"),
    "json_object": ({"response_format": {"type": "json_object"}}, 400, "unsupported_parameter", "response_format"),
    "json_schema": ({"response_format": {"type": "json_schema"}}, 400, "unsupported_parameter", "response_format"),
    "an unknown format": ({"response_format": {"type": "xml"}}, 400, "invalid_value", "response_format"),
    "no tools in tools": ({"tools": []}, 400, "invalid_value", "tools"),
    "a tool of a wrong type": ({"tools": [{"type": "retrieval"}]}, 400, "invalid_value", "tools[0].type"),
    "a bad tool name": ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, 400, "invalid_value", "tools[0].function.name"),
    "a forced tool": ({"tools": [TOOL], "tool_choice": "required"}, 400, "unsupported_parameter", "tool_choice"),
    "an unknown tool_choice": ({"tools": [TOOL], "tool_choice": "x"}, 400, "invalid_value", "tool_choice"),
    "arguments that are no object": (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1"}}]}]},
        400, "invalid_value", "messages[0].tool_calls[0].function.arguments",
    ),
    "audio": ({"modalities": ["text", "audio"]}, 400, "unsupported_parameter", "modalities"),
    "functions": ({"functions": [{"name": "f"}]}, 400, "unsupported_parameter", "functions"),
    "a template of one's own": ({"chat_template": "{{ 1 }}"}, 400, "unsupported_parameter", "chat_template"),
    "a variable that is not allowed": ({"chat_template_kwargs": {"messages": []}}, 400, "unsupported_parameter", "chat_template_kwargs"),
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
    started = time.monotonic()
    answer = await gateway.http.post("/v1/chat/completions", json=GOOD | fields)
    assert time.monotonic() - started < 1
    error = _check_envelope(answer)
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert not engine.submits
    assert (await gateway.chat()).status_code == 200


@pytest.mark.parametrize("name", BODIES)
async def test_wrong_bodies_are_refused(gateway, engine: TalkingEngine, name: str) -> None:
    body, status, code = BODIES[name]
    started = time.monotonic()
    answer = await gateway.http.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert time.monotonic() - started < 1
    assert (answer.status_code, _check_envelope(answer)["code"]) == (status, code)
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
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 100\r\n\r\n{"
        )
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 2)
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
    "path", ["/", "/v1/nothing", "/v1/chat/completions/", "/v1/" + "x" * 5000, "/%00", "/v1/models/no/such"]
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
        (b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"x-long: " + b"a" * 100_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", 431),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 431),
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
    answer = await asyncio.wait_for(reader.read(), 2)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]) == {"message", "type", "param", "code"}
    writer.close()
    assert (await gateway.chat()).status_code == 200
