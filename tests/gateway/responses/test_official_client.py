import asyncio
import json
from typing import Literal

import httpx
import openai
import pytest
from pydantic import BaseModel
from tests.gateway.responses.conftest import ARGUMENTS, CALL, WEATHER

from rhizome.engine.v1.generate_pb2 import FinishReason
from rhizome_testing.talking_engine import Finish, Say, TalkingEngine

MODEL = "talking-model"


class Weather(BaseModel):
    city: str
    sky: Literal["clear", "cloudy"]


async def test_create(gateway) -> None:
    response = await gateway.openai.responses.create(model=MODEL, input="Hi")
    assert response.output_text == "Hello!"
    assert response.usage and response.usage.input_tokens_details.cached_tokens == 3
    assert response.model_extra and response.model_extra["performance"]


async def test_the_synchronous_client(gateway) -> None:
    def ask() -> tuple[str, str, int]:
        with openai.OpenAI(
            base_url=f"{gateway.url}/v1", api_key="x", http_client=httpx.Client(trust_env=False)
        ) as client:
            response = client.responses.create(model=MODEL, input="Hi")
            with client.responses.stream(model=MODEL, input="Hi") as stream:
                text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
                assert stream.get_final_response().output_text == text
            counted = client.responses.input_tokens.count(model=MODEL, input="Hi")
            assert response.usage and response.usage.input_tokens == counted.input_tokens
            return response.output_text, text, counted.input_tokens

    whole, text, counted = await asyncio.to_thread(ask)
    assert whole == text == "Hello!" and counted > 0


async def test_stream(gateway) -> None:
    stream = await gateway.openai.responses.create(model=MODEL, input="Hi", stream=True)
    events = [event async for event in stream]
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    assert events[-1].response.output_text == "Hello!"


async def test_the_stream_helper_collects_calls(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(f"<think>Hm</think>I look.\n{CALL}\n{CALL}")]
    async with gateway.openai.responses.stream(model=MODEL, input="Hi", tools=[WEATHER]) as stream:
        snapshots = [e.snapshot async for e in stream if e.type == "response.function_call_arguments.delta"]
        response = await stream.get_final_response()
    assert snapshots[-1] == ARGUMENTS
    assert [item.type for item in response.output] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]


async def test_parse(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say('{"city": "Bern", "sky": "clear"}')]
    response = await gateway.openai.responses.parse(model=MODEL, input="Hi", text_format=Weather)
    assert response.output_parsed == Weather(city="Bern", sky="clear")
    assert engine.submits[0].request.HasField("grammar")
    async with gateway.openai.responses.stream(model=MODEL, input="Hi", text_format=Weather) as stream:
        streamed = await stream.get_final_response()
    assert streamed.output_parsed == response.output_parsed


async def test_parsed_arguments_of_a_pydantic_tool(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [
        Say('<tool_call>{"name": "Weather", "arguments": {"city": "Bern", "sky": "cloudy"}}</tool_call>')
    ]
    response = await gateway.openai.responses.parse(
        model=MODEL,
        input="Hi",
        tools=[openai.pydantic_function_tool(Weather)["function"] | {"type": "function"}],
    )
    assert response.output[0].parsed_arguments == {"city": "Bern", "sky": "cloudy"}


async def test_a_tool_loop_sends_the_output_items_back(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("It rains." if "wet" in prompt else f"<think>Hm</think>{CALL}")]
    history: list = [{"role": "user", "content": "Weather?"}]
    first = await gateway.openai.responses.create(model=MODEL, input=history, tools=[WEATHER])
    history += first.output
    call = first.output[-1]
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Zürich"}
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "wet"})
    second = await gateway.openai.responses.create(model=MODEL, input=history, tools=[WEATHER])
    assert second.output_text == "It rains."
    dumped = [*history[:1], *(item.model_dump() for item in first.output), history[-1]]
    third = await gateway.openai.responses.create(model=MODEL, input=dumped, tools=[WEATHER])
    assert third.output_text == "It rains."


async def test_an_incomplete_stream_is_told_apart(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("one"), Finish(FinishReason.FINISH_REASON_LENGTH)]
    async with gateway.openai.responses.stream(model=MODEL, input="Hi") as stream:
        last = [event async for event in stream][-1]
    assert last.type == "response.incomplete" and last.response.output_text == "one"


async def test_errors_are_typed(gateway) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        await gateway.openai.responses.create(model=MODEL, input="Hi", previous_response_id="resp_1")
    assert bad.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError):
        await gateway.openai.responses.retrieve("resp_1")
