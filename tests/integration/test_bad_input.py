"""Whatever a client sends, it gets OpenAI's error envelope within a second, and the next one is served."""

from __future__ import annotations

import json
import time

import httpx
import pytest
from openai import OpenAI

from rhizome_testing.running_stack import RunningStack
from rhizome_testing.time_bounds import assert_within

GOOD = {"model": "rhizome-demo", "messages": [{"role": "user", "content": "Hello"}]}
CASES: dict[str, tuple[bytes, int]] = {
    "broken JSON": (b'{"model": ', 400),
    "not an object": (b"[1, 2]", 400),
    "no body": (b"", 400),
    "no messages": (b'{"model": "rhizome-demo"}', 400),
    "empty messages": (json.dumps({**GOOD, "messages": []}).encode(), 400),
    "messages of the wrong type": (json.dumps({**GOOD, "messages": "Hello"}).encode(), 400),
    "an unknown role": (json.dumps({**GOOD, "messages": [{"role": "wizard", "content": "x"}]}).encode(), 400),
    "an unknown model": (json.dumps({**GOOD, "model": "gpt-unknown"}).encode(), 404),
    "temperature as text": (json.dumps({**GOOD, "temperature": "hot"}).encode(), 400),
    "temperature out of range": (json.dumps({**GOOD, "temperature": -1}).encode(), 400),
    "NaN": (json.dumps({**GOOD, "temperature": float("nan")}).encode(), 400),
    "top_p of zero": (json.dumps({**GOOD, "top_p": 0}).encode(), 400),
    "max_tokens of zero": (json.dumps({**GOOD, "max_tokens": 0}).encode(), 400),
    "a logit bias beyond the vocabulary": (
        json.dumps({**GOOD, "logit_bias": {"99999999": 1}}).encode(),
        400,
    ),
    "a prompt beyond the context": (
        json.dumps({**GOOD, "messages": [{"role": "user", "content": "lamp " * 20_000}]}).encode(),
        400,
    ),
    "max_tokens beyond the context": (json.dumps({**GOOD, "max_tokens": 1_000_000}).encode(), 400),
    "a huge body": (
        json.dumps({**GOOD, "messages": [{"role": "user", "content": "x" * 9_000_000}]}).encode(),
        413,
    ),
    "deeply nested JSON": (
        b'{"model":"rhizome-demo","messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        400,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_answers_in_the_envelope_within_a_second(stack: RunningStack, case: str) -> None:
    body, status = CASES[case]

    def ask() -> float:
        started = time.monotonic()
        response = httpx.post(
            f"{stack.url}/v1/chat/completions",
            content=body,
            headers={"Content-Type": "application/json"},
            timeout=30,
        )
        elapsed = time.monotonic() - started
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str) and isinstance(error["code"], str)
        assert len(response.content) < 4096
        return elapsed

    assert_within(1, ask)


def test_unknown_routes_and_methods_answer_in_the_envelope(stack: RunningStack) -> None:
    missing = httpx.get(f"{stack.url}/v1/nothing")
    assert missing.status_code == 404 and set(missing.json()) == {"error"}
    wrong = httpx.get(f"{stack.url}/v1/chat/completions")
    assert wrong.status_code == 405 and set(wrong.json()) == {"error"}
    assert "POST" in wrong.headers["allow"]


def test_other_content_types_are_refused(stack: RunningStack) -> None:
    response = httpx.post(
        f"{stack.url}/v1/chat/completions", content=json.dumps(GOOD), headers={"Content-Type": "text/plain"}
    )
    assert response.status_code == 415 and set(response.json()) == {"error"}


def test_a_good_request_is_served_after_all_that(client: OpenAI) -> None:
    answer = client.chat.completions.create(**GOOD, temperature=0)  # type: ignore[call-overload]
    assert answer.choices[0].message.content
