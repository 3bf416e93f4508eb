from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

import anthropic
import httpx2
import pytest
from pydantic import BaseModel, TypeAdapter
from tests.gateway.conftest import RunningGateway, running_gateway

from rhizome_testing.talking_engine import TalkingEngine

HI = [{"role": "user", "content": "Hi"}]
BODY: dict[str, Any] = {"model": "talking-model", "max_tokens": 100, "messages": HI}
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city":  "Zürich"}}\n</tool_call>'


def async_client(url: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        base_url=url, api_key="none", max_retries=0, http_client=httpx2.AsyncClient(trust_env=False)
    )


_adapter = lru_cache(TypeAdapter)


def strictly(kind: Any, value: Any) -> Any:
    """Check a value against a type of the SDK, whose models let unknown fields pass."""
    model = _adapter(kind).validate_python(value, strict=True)
    _has_only_known_fields(model)
    return model


def _has_only_known_fields(value: Any) -> None:
    if isinstance(value, BaseModel):
        assert not value.model_extra, f"{type(value).__name__} does not know {value.model_extra}"
        value = [getattr(value, name) for name in type(value).model_fields]
    for inner in value if isinstance(value, list) else ():
        _has_only_known_fields(inner)


@asynccontextmanager
async def anthropic_gateway(engine: TalkingEngine, **settings: Any) -> AsyncIterator[RunningGateway]:
    """One whose model thinks in <think> and calls tools as Hermes does."""
    parsers = {"tool_parser": "hermes", "reasoning_parser": "think"}
    async with running_gateway(engine.target, **parsers | settings) as gateway:
        await gateway.becomes_ready()
        yield gateway


@pytest.fixture
async def gateway(engine: TalkingEngine) -> AsyncIterator[RunningGateway]:
    async with anthropic_gateway(engine) as gateway:
        yield gateway


@pytest.fixture
async def client(gateway: RunningGateway) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with async_client(gateway.url) as client:
        yield client
