import asyncio

import grpc
import pytest
from tests.gateway.conftest import eventually

from rhizome_testing.talking_engine import Hang, Refuse, Say, TalkingEngine
from rhizome_transport.errors import EngineError

BODY = {"model": "talking-model", "messages": [{"role": "user", "content": "Hi"}]}


async def _open_requests(engine: TalkingEngine, number: int) -> None:
    await eventually(lambda: len(engine.submits) == number)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_cancels_in_the_engine(
    gateway, engine: TalkingEngine, stream: bool
) -> None:
    engine.script = lambda prompt: [Say("a"), Hang()]
    asking = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=BODY | {"stream": stream}))
    await _open_requests(engine, 1)
    asking.cancel()
    await asyncio.wait([asking])
    await eventually(lambda: len(engine.cancelled) == 1, within_s=1)
    engine.script = lambda prompt: [Say("well")]
    assert (await gateway.chat()).json()["choices"][0]["message"]["content"] == "well"


async def test_all_choices_are_cancelled(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Hang()]
    asking = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=BODY | {"n": 4}))
    await _open_requests(engine, 4)
    asking.cancel()
    await asyncio.wait([asking])
    await eventually(lambda: len(set(engine.cancelled)) == 4, within_s=1)


async def test_an_error_of_one_choice_cancels_the_others(gateway, engine: TalkingEngine) -> None:

    turns = iter([[Hang()], [Say("x"), Refuse(EngineError(grpc.StatusCode.INTERNAL, "no"))], [Hang()]])
    engine.script = lambda prompt: next(turns)
    assert (await gateway.chat(n=3)).status_code == 500
    await eventually(lambda: len(engine.cancelled) == 2)


async def test_a_reader_that_stops_reading_stops_the_stream(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("word " * 200), Hang()]
    async with gateway.http.stream("POST", "/v1/chat/completions", json=BODY | {"stream": True}) as answer:
        async for line in answer.aiter_lines():
            if '"content":"w' in line:  # however much was merged
                break
    await eventually(lambda: len(engine.cancelled) == 1, within_s=1)
