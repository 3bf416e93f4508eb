"""A request is gone with its answer: nothing of it waits for the garbage collector."""

from typing import Any

import grpc
import pytest
from tests.gateway.conftest import RunningGateway, StartGateway

from rhizome_testing.circles import left_in_circles
from rhizome_testing.talking_engine import Hang, Pause, Refuse, Say, TalkingEngine
from rhizome_transport.errors import EngineError

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/v1/chat/completions", {}, 200),
        ("/v1/chat/completions", {"stream": True}, 200),
        ("/v1/chat/completions", {"n": 3, "stream": True}, 200),
        ("/v1/chat/completions", {"tools": TOOLS}, 200),
        ("/v1/chat/completions", {"model": "of somebody else"}, 404),
        ("/v1/chat/completions", {"temperature": "hot"}, 400),
        ("/v1/messages", {"max_tokens": 9, "stream": True}, 200),
    ],
)
async def test_nothing_of_a_request_outlives_it(
    gateway: RunningGateway, engine: TalkingEngine, path: str, fields: dict[str, Any], status: int
) -> None:
    engine.script = lambda prompt: [Say("Hello"), Say(" there")]
    body = {"model": "talking-model", "messages": [{"role": "user", "content": "Hi"}]} | fields

    async def ask() -> None:
        for _ in range(5):
            answer = await gateway.http.post(path, json=body)
            assert answer.status_code == status

    assert not await left_in_circles(ask)


async def test_nothing_of_a_reader_who_left_outlives_it(
    gateway: RunningGateway, engine: TalkingEngine
) -> None:
    engine.script = lambda prompt: [Say("word ", at_once=True)] * 5000
    body = {"model": "talking-model", "messages": [{"role": "user", "content": "Hi"}], "stream": True}

    async def leave() -> None:
        async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for _ in answer.aiter_raw():
                break

    assert not await left_in_circles(leave)


FULL = EngineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests wait")
BROKEN = EngineError(grpc.StatusCode.INTERNAL, "out of order")


@pytest.mark.parametrize(
    ("script", "stream", "status"),
    [
        ([Refuse(FULL)], False, 429),
        ([Refuse(FULL)], True, 429),
        ([Say("Hel"), Pause(0.02), Refuse(BROKEN)], False, 500),
        ([Say("Hel"), Pause(0.02), Refuse(BROKEN)], True, 200),
    ],
)
async def test_nothing_of_a_request_that_failed_outlives_it(
    gateway: RunningGateway, engine: TalkingEngine, script: list[Any], stream: bool, status: int
) -> None:
    engine.script = lambda prompt: script

    async def ask() -> None:
        for _ in range(5):
            assert (await gateway.chat(stream=stream)).status_code == status

    assert not await left_in_circles(ask)


async def test_nothing_of_a_request_that_took_too_long_outlives_it(
    engine: TalkingEngine, start_gateway: StartGateway
) -> None:
    engine.script = lambda prompt: [Hang()]
    async with start_gateway(engine.target, request_timeout_s=0.05) as gateway:
        await gateway.becomes_ready()

        async def ask() -> None:
            assert (await gateway.chat()).status_code == 504

        assert not await left_in_circles(ask)
