import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from tests.gateway.conftest import RunningGateway, running_gateway

from rhizome_testing.talking_engine import TalkingEngine

BODY: dict[str, Any] = {"model": "talking-model", "input": "Hi"}
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
ARGUMENTS = '{"city":  "Zürich"}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
EVENT = TypeAdapter(ResponseStreamEvent)


@asynccontextmanager
async def responses_gateway(engine: TalkingEngine, **settings: Any) -> AsyncIterator[RunningGateway]:
    """One whose model thinks in <think> and calls tools as Hermes does."""
    engine.max_context_tokens = 100_000
    parsers = {"tool_parser": "hermes", "reasoning_parser": "think"}
    async with running_gateway(engine.target, **parsers | settings) as gateway:
        await gateway.becomes_ready()
        yield gateway


@pytest.fixture
async def gateway(engine: TalkingEngine) -> AsyncIterator[RunningGateway]:
    async with responses_gateway(engine) as gateway:
        yield gateway


async def whole(gateway: RunningGateway, **fields: Any) -> dict[str, Any]:
    """A response at once, checked with the SDK's model."""
    answer = await gateway.http.post("/v1/responses", json=BODY | fields)
    assert answer.status_code == 200, answer.text
    Response.model_validate_json(answer.content, strict=True)
    found: dict[str, Any] = answer.json()
    return found


async def streamed(gateway: RunningGateway, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, each checked with the SDK's model for its type."""
    answer = await gateway.http.post("/v1/responses", json=BODY | fields | {"stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return events_of(answer.text)


def events_of(text: str) -> list[dict[str, Any]]:
    events = []
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    for number, block in enumerate(blocks):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        EVENT.validate_json(data.removeprefix("data: "), strict=True)
        events.append(event)
    return events
