"""The official Python SDK: each refusal is the exception that its users catch."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import OpenAI

MODEL = "rhizome-demo"
HI: list[Any] = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"temperature": 3}, "invalid_value"),
        ({"messages": []}, "invalid_value"),
        ({"max_tokens": 100_000}, "context_length_exceeded"),
        ({"top_logprobs": 3}, "invalid_value"),
        ({"functions": [{"name": "f"}]}, "unsupported_parameter"),
        ({"tool_choice": "required"}, "invalid_value"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}}},
            "invalid_json_schema",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "unsupported_content",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_request_is_a_bad_request(
    client: OpenAI, fields: dict[str, Any], code: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": HI, "stream": stream} | fields)
    error = caught.value
    assert (error.status_code, error.type, error.code) == (400, "invalid_request_error", code)
    assert error.request_id
    assert error.message


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="no-such-model", messages=HI)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_a_wrong_key_is_an_authentication_error(client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="sk-nobody").chat.completions.create(model=MODEL, messages=HI)
    assert caught.value.code == "invalid_api_key"
    assert "sk-nobody" not in str(caught.value)


def test_a_model_that_a_key_may_not_use_is_denied(client: OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError) as caught:
        client.with_options(api_key="sk-other-models").chat.completions.create(model=MODEL, messages=HI)
    assert caught.value.code == "model_not_allowed"


def test_too_many_requests_are_a_rate_limit(client: OpenAI) -> None:
    hasty = client.with_options(api_key="sk-one-a-minute")
    hasty.chat.completions.create(model=MODEL, messages=HI, max_tokens=1)
    with pytest.raises(openai.RateLimitError) as caught:
        hasty.chat.completions.create(model=MODEL, messages=HI, max_tokens=1)
    assert caught.value.code == "rate_limit_exceeded"
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert caught.value.response.headers["x-ratelimit-limit-requests"] == "1"


def test_a_body_that_is_too_large_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x" * (5 * 1024 * 1024)}]
        )
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")


def test_nobody_listens(client: OpenAI) -> None:
    with pytest.raises(openai.APIConnectionError):
        client.with_options(base_url="http://127.0.0.1:9/v1").chat.completions.create(
            model=MODEL, messages=HI
        )


def test_what_the_gateway_does_not_have_is_not_found(client: OpenAI) -> None:
    for ask in (client.files.list, client.batches.list, lambda: client.images.generate(prompt="a cat")):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert caught.value.code == "unknown_url"
