"""From the official OpenAI client to a token and back, through every service."""

from __future__ import annotations

import httpx
import openai
import pytest
from openai import OpenAI

from rhizome_testing.running_stack import RunningStack

MODEL = "rhizome-demo"


def ask(client: OpenAI, text: str, **options: object) -> str:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": text}],
        temperature=0,
        **options,  # type: ignore[call-overload]
    )
    return str(answer.choices[0].message.content)


def test_answers_a_question(client: OpenAI) -> None:
    assert "Paris" in ask(client, "What is the capital of France?")


def test_answers_in_chinese_without_half_characters(client: OpenAI) -> None:
    text = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "你好"}], temperature=0, stream=True
        )
        if chunk.choices
    )
    assert "你好" in text
    assert "\N{REPLACEMENT CHARACTER}" not in text


def test_streams_the_text_that_it_returns_whole(client: OpenAI) -> None:
    messages = [{"role": "user", "content": "Count from 1 to 60."}]
    whole = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)  # type: ignore[arg-type]
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=messages,  # type: ignore[arg-type]
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert text.startswith("1, 2, 3, 4, 5")
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 3
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        "stop"
    ]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_reports_usage_and_performance(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}], temperature=0
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    performance = (answer.model_extra or {})["performance"]
    assert set(performance) == {
        "queue_time_ms",
        "prefill_time_ms",
        "decode_time_ms",
        "time_to_first_token_ms",
        "tokens_per_second",
    }
    assert 0 < performance["time_to_first_token_ms"] < 60_000
    assert performance["tokens_per_second"] > 0


def test_a_repeated_prompt_is_found_in_the_cache(client: OpenAI) -> None:
    """Both engines may see it first, so three times is enough for one to see it twice."""
    cached = []
    for _ in range(3):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "The code of the lamp is 4821. " * 8 + "Hello"}],
            max_tokens=4,
            temperature=0,
        )
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        cached.append(answer.usage.prompt_tokens_details.cached_tokens or 0)
        assert cached[-1] < answer.usage.prompt_tokens
    assert max(cached) > 32


def test_stop_strings_end_the_text_before_they_begin(client: OpenAI) -> None:
    assert ask(client, "Count from 1 to 10.") == "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"
    assert ask(client, "Count from 1 to 10.", stop=["7, 8"]) == "1, 2, 3, 4, 5, 6, "


def test_max_tokens_ends_with_length(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Count from 1 to 30"}], max_tokens=5
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 5


def test_a_seed_repeats_a_sampled_text(client: OpenAI) -> None:
    def sample(seed: int) -> str:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Count from 1 to 30"}],
            temperature=2.0,
            seed=seed,
            max_tokens=40,
        )
        return str(answer.choices[0].message.content)

    assert sample(7) == sample(7)
    assert len({sample(seed) for seed in range(5)}) > 1


def test_follows_a_system_prompt_that_renames_it(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "Your name is Zorro."},
            {"role": "user", "content": "What is your name?"},
        ],
        temperature=0,
    )
    assert "Zorro" in str(answer.choices[0].message.content)


def test_lists_and_describes_the_model(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody/knows-this")


def test_health_ready_and_docs_answer(stack: RunningStack) -> None:
    for path in ("/health", "/ready", "/docs"):
        assert httpx.get(stack.url + path).status_code == 200, path
