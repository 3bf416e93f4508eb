"""From the official Anthropic client to a token and back, through every service: an agent's round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from anthropic import Anthropic
from anthropic.types import Message

from rhizome_testing.running_stack import RunningStack

MODEL = "rhizome-demo"
WEATHER: dict[str, Any] = {
    "name": "get_current_weather",
    "description": "Get the current weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"location": {"type": "string"}},
        "required": ["location"],
    },
}
GREEDY = {"temperature": 0}


@pytest.fixture
def anthropic(stack: RunningStack) -> Iterator[Anthropic]:
    with Anthropic(
        base_url=stack.url,
        api_key="not-needed",
        max_retries=0,
        timeout=60,
        http_client=httpx2.Client(trust_env=False),
    ) as client:
        yield client


def whole(anthropic: Anthropic, **fields: Any) -> Message:
    return anthropic.messages.create(model=MODEL, max_tokens=100, extra_body=GREEDY, **fields)


def streamed(anthropic: Anthropic, **fields: Any) -> Message:
    with anthropic.messages.stream(model=MODEL, max_tokens=100, extra_body=GREEDY, **fields) as stream:
        return stream.get_final_message()


def test_a_system_prompt_and_a_question(anthropic: Anthropic) -> None:
    fields = {
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cch=1;"},
            {"type": "text", "text": "Your name is Zorro.", "cache_control": {"type": "ephemeral"}},
        ],
        "messages": [{"role": "user", "content": "Who are you?"}],
    }
    for ask in (whole, streamed):
        message = ask(anthropic, **fields)
        assert message.content[0].type == "text" and "Zorro" in message.content[0].text
        assert message.stop_reason == "end_turn"


@pytest.mark.parametrize("ask", [whole, streamed])
def test_a_tool_is_called_and_its_result_told(anthropic: Anthropic, ask: Any) -> None:
    turns: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked = ask(anthropic, messages=turns, tools=[WEATHER], tool_choice={"type": "any"})
    assert asked.stop_reason == "tool_use"
    (call,) = asked.content
    assert call.type == "tool_use" and call.name == "get_current_weather"
    assert call.input == {"location": "Paris"}
    turns.append({"role": "assistant", "content": asked.content})
    turns.append(
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": call.id,
                    "content": '{"weather": "sunny", "temperature": 21}',
                }
            ],
        }
    )
    told = ask(anthropic, messages=turns, tools=[WEATHER])
    assert told.content[0].type == "text" and "sunny" in told.content[0].text
    assert told.stop_reason == "end_turn"
    counted = anthropic.messages.count_tokens(model=MODEL, messages=turns, tools=[WEATHER]).input_tokens
    assert counted == told.usage.input_tokens + (told.usage.cache_read_input_tokens or 0)
