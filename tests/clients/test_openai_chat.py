"""The official Python SDK: chat completions, whole and streamed."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

MODEL = "rhizome-demo"
FRANCE: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["days"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "now"}}


def test_a_question_is_answered(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=FRANCE, temperature=0)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.model == MODEL
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", PARIS, "stop")
    assert choice.message.refusal is None and choice.message.tool_calls is None
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_model_has_the_name_that_was_asked_for(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt-4.1-mini", messages=FRANCE, temperature=0)
    assert (answer.model, answer.choices[0].message.content) == ("gpt-4.1-mini", PARIS)


def test_a_stream_says_what_the_whole_answer_says(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": FRANCE, "temperature": 0}
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == PARIS
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    whole = client.chat.completions.create(**asked).usage
    assert whole is not None and chunks[-1].usage.completion_tokens == whole.completion_tokens


def test_a_stream_without_usage_has_none(client: OpenAI) -> None:
    with client.chat.completions.create(model=MODEL, messages=FRANCE, temperature=0, stream=True) as stream:
        assert all(chunk.choices and chunk.usage is None for chunk in stream)


async def test_many_questions_at_once(async_client: AsyncOpenAI) -> None:
    async def streamed(question: str) -> str:
        messages: list[Any] = [{"role": "user", "content": question}]
        stream = await async_client.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def whole(question: str) -> str | None:
        messages: list[Any] = [{"role": "user", "content": question}]
        answer = await async_client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
        return answer.choices[0].message.content

    expected = {
        "What is the capital of France?": PARIS,
        "What colour is the sky?": "The sky is blue.",
        "你是谁？": "我是 Rhizome，一个小语言模型。",
        'Spell the word "banana".': "b-a-n-a-n-a",
    }
    questions = list(expected) * 3
    answers = await asyncio.gather(*map(streamed, questions), *map(whole, questions))
    assert answers == [expected[question] for question in questions * 2]


def test_several_answers(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": FRANCE, "n": 3, "temperature": 1.5, "seed": 5}
    whole = client.chat.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_a_seed_decides_the_answer(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": FRANCE, "temperature": 2, "max_tokens": 20}
    texts = [
        client.chat.completions.create(**asked, seed=seed).choices[0].message.content
        for seed in (1, 1, 2, 3, 4)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_it_stops_before_a_stop_string(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": FRANCE, "temperature": 0, "stop": ["is Par", "xyz"]}
    answer = client.chat.completions.create(**asked).choices[0]
    assert (answer.message.content, answer.finish_reason) == ("The capital of France ", "stop")
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(choice.delta.content or "" for choice in chunks) == answer.message.content


def test_it_stops_at_the_limit(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=FRANCE, temperature=0, max_completion_tokens=3, max_tokens=100
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 3


def test_log_probabilities_spell_the_answer(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": FRANCE, "temperature": 0}
    asked |= {"logprobs": True, "top_logprobs": 3}
    logprobs = client.chat.completions.create(**asked).choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    # The end of the turn is a token too, and has no text.
    assert b"".join(bytes(token.bytes or ()) for token in logprobs.content).decode().startswith(PARIS)
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(rival.logprob for rival in token.top_logprobs)
        assert 0 < sum(math.exp(rival.logprob) for rival in token.top_logprobs) <= 1.001
    streamed = [
        token
        for chunk in client.chat.completions.create(**asked, stream=True)
        for token in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else None) or ()
    ]
    assert [token.token for token in streamed] == [token.token for token in logprobs.content]


@pytest.mark.parametrize(
    ("choice", "reason"),
    [("required", "tool_calls"), ({"type": "function", "function": {"name": "get_weather"}}, "stop")],
)
def test_a_tool_is_called_and_its_answer_read(client: OpenAI, choice: Any, reason: str) -> None:
    asked: dict[str, Any] = {"model": MODEL, "tools": [WEATHER], "tool_choice": choice}
    asked |= {"temperature": 0, "parallel_tool_calls": False}
    question: dict[str, Any] = {"role": "user", "content": "What is the weather in Paris?"}
    first = client.chat.completions.create(**asked, messages=[question]).choices[0]
    assert first.finish_reason == reason and first.message.content is None
    (call,) = first.message.tool_calls or ()
    assert call.type == "function" and call.function.name == "get_weather"
    assert 1 <= json.loads(call.function.arguments)["days"] <= 9

    name, arguments, ids = "", "", set()
    for chunk in client.chat.completions.create(**asked, messages=[question], stream=True):
        for part in chunk.choices[0].delta.tool_calls or ():
            assert part.function is not None
            ids |= {part.id} - {None}
            name += part.function.name or ""
            arguments += part.function.arguments or ""
    assert (name, arguments) == (call.function.name, call.function.arguments)
    assert len(ids) == 1

    returned = {
        "role": "tool",
        "tool_call_id": call.id,
        "content": '{"weather": "sunny", "temperature": 21}',
    }
    told = client.chat.completions.create(
        model=MODEL,
        tools=[WEATHER],
        messages=[question, first.message, returned],
        temperature=0,
    )
    assert "21" in str(told.choices[0].message.content)


def test_tools_that_may_not_be_called_are_not(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=FRANCE, tools=[WEATHER, CLOCK], tool_choice="none", temperature=0
    )
    assert (answer.choices[0].message.content, answer.choices[0].message.tool_calls) == (PARIS, None)


def test_roles_and_parts_of_a_conversation(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Your name is Zorro."}]},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": "Hello! How can I help you?"},
            {"role": "user", "content": "Who are you?"},
        ],
        temperature=0,
    )
    assert answer.choices[0].message.content == "I am Zorro, a small language model."


def test_what_only_openai_does_changes_nothing(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=FRANCE,
        temperature=0,
        user="u",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        safety_identifier="s",
        prompt_cache_key="k",
        verbosity="low",
        modalities=["text"],
        prediction={"type": "content", "content": "x"},
        logit_bias={},
        response_format={"type": "text"},
    )
    assert answer.choices[0].message.content == PARIS
