"""The Responses API through every service, with the official client."""

from __future__ import annotations

from typing import Literal

from openai import OpenAI
from pydantic import BaseModel

MODEL = "rhizome-demo"


class Capital(BaseModel):
    city: Literal["Paris", "Rome"]


def test_a_response_is_the_same_streamed_or_whole(client: OpenAI) -> None:
    asked = {"model": MODEL, "input": "What is the capital of France?", "temperature": 0}
    whole = client.responses.create(**asked)  # type: ignore[call-overload]
    assert "Paris" in whole.output_text and whole.status == "completed"
    with client.responses.stream(**asked) as stream:  # type: ignore[call-overload]
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        streamed = stream.get_final_response()
    assert text == streamed.output_text == whole.output_text
    assert streamed.usage is not None and streamed.usage.output_tokens == whole.usage.output_tokens
    counted = client.responses.input_tokens.count(model=MODEL, input="What is the capital of France?")
    assert counted.input_tokens == whole.usage.input_tokens


def test_an_answer_is_parsed_into_a_model(client: OpenAI) -> None:
    response = client.responses.parse(
        model=MODEL,
        input="What is the capital of France?",
        temperature=0,
        max_output_tokens=100,
        text_format=Capital,
    )
    assert isinstance(response.output_parsed, Capital)


def test_a_forced_call_and_its_output(client: OpenAI) -> None:
    tool = {
        "type": "function",
        "name": "get_weather",
        "description": "The weather in a city",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
    asked = {"model": MODEL, "tools": [tool], "temperature": 0, "max_output_tokens": 200}
    items: list[object] = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.responses.create(
        input=items,
        tool_choice={"type": "function", "name": "get_weather"},
        parallel_tool_calls=False,
        **asked,  # type: ignore[call-overload]
    )
    (call,) = (item for item in first.output if item.type == "function_call")
    assert call.name == "get_weather" and call.arguments in ('{"city": "Paris"}', '{"city": "Rome"}')
    items += first.output
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "Sunny"})
    second = client.responses.create(input=items, **asked)  # type: ignore[call-overload]
    assert second.status in ("completed", "incomplete") and second.output
