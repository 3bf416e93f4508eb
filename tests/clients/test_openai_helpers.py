"""The official Python SDK: what it builds on top, `parse`, `stream` and raw responses."""

from __future__ import annotations

import time
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from rhizome_testing.time_bounds import assert_within

MODEL = "rhizome-demo"
FRANCE: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."


class Person(BaseModel):
    name: str = Field(max_length=8)
    age: int = Field(ge=1, le=120)
    sex: Literal["f", "m"]


class Forecast(BaseModel):
    """The weather of the next days."""

    days: int = Field(ge=1, le=9)
    unit: Literal["celsius", "fahrenheit"]


def test_parse_gives_the_type_that_was_asked_for(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=FRANCE, response_format=Person, temperature=0
    )
    person = answer.choices[0].message.parsed
    assert isinstance(person, Person)
    assert Person.model_validate_json(str(answer.choices[0].message.content)) == person


async def test_parse_gives_it_asynchronously(async_client: AsyncOpenAI) -> None:
    answer = await async_client.chat.completions.parse(
        model=MODEL, messages=FRANCE, response_format=Person, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_parse_gives_the_arguments_of_a_call(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=FRANCE,
        tools=[openai.pydantic_function_tool(Forecast)],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
    )
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.type == "function" and isinstance(call.function.parsed_arguments, Forecast)


def test_parse_tells_that_the_limit_cut_the_answer(client: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model=MODEL, messages=FRANCE, response_format=Person, max_tokens=2, temperature=0
        )


def test_the_stream_helper_collects_the_answer(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=FRANCE, temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    deltas = [event.delta for event in events if event.type == "content.delta"]
    assert len(deltas) > 1 and "".join(deltas) == PARIS
    assert [event.content for event in events if event.type == "content.done"] == [PARIS]
    assert final.choices[0].message.content == PARIS
    assert final.choices[0].finish_reason == "stop"


async def test_the_stream_helper_parses_as_it_goes(async_client: AsyncOpenAI) -> None:
    async with async_client.chat.completions.stream(
        model=MODEL,
        messages=FRANCE,
        response_format=Person,
        temperature=0,
        stream_options={"include_usage": True},
    ) as stream:
        parsed = [event.parsed async for event in stream if event.type == "content.done"]
        final = await stream.get_final_completion()
    assert isinstance(parsed[0], Person)
    assert final.choices[0].message.parsed == parsed[0]
    assert final.usage is not None and final.usage.completion_tokens > 0


def test_the_stream_helper_collects_calls(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL,
        messages=FRANCE,
        tools=[openai.pydantic_function_tool(Forecast)],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
    ) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert [event.name for event in done] == ["Forecast"]
    assert "".join(event.arguments_delta for event in deltas) == done[0].arguments
    (call,) = final.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Forecast)


def test_the_stream_helper_scores_tokens(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=FRANCE, temperature=0, logprobs=True) as stream:
        done = [event for event in stream if event.type == "logprobs.content.done"]
    assert "".join(token.token for token in done[0].content).startswith(PARIS)


def test_a_request_id_goes_in_and_out(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=FRANCE, temperature=0, extra_headers={"x-request-id": "my-own-id"}
    )
    assert raw.headers["x-request-id"] == "my-own-id"
    assert raw.parse().choices[0].message.content == PARIS
    answer = client.chat.completions.create(model=MODEL, messages=FRANCE, temperature=0)
    assert answer._request_id


def test_a_stream_can_be_read_line_by_line(client: OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=FRANCE, temperature=0, stream=True
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_the_clients_patience_ends_before_the_answer(client: OpenAI) -> None:
    counting: list[Any] = [{"role": "user", "content": "Count from 1 to 60."}]

    def give_up() -> float:
        begun = time.monotonic()
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.05).chat.completions.create(
                model=MODEL,
                messages=counting,
                max_tokens=1500,
                extra_body={"ignore_eos": True},
            )
        return time.monotonic() - begun

    assert_within(5, give_up)
