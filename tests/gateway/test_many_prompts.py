"""More prompts in one request than an engine's queue takes."""

import asyncio
from typing import Any

import pytest
from tests.gateway.conftest import RunningGateway, eventually

from rhizome_gateway.generation.response import MAX_AT_ONCE
from rhizome_testing.talking_engine import Hang, Say, TalkingEngine

PROMPTS = [f"p{number}" for number in range(500)]


@pytest.mark.parametrize("stream", [False, True])
async def test_many_prompts_are_all_answered(
    gateway: RunningGateway, engine: TalkingEngine, stream: bool
) -> None:
    engine.script = lambda prompt: [Say(prompt + "!")]
    texts = dict.fromkeys(range(len(PROMPTS)), "")
    create: Any = gateway.openai.completions.create
    answer = await create(model="talking-model", prompt=PROMPTS, stream=stream)
    parts = [part async for part in answer] if stream else [answer]
    for part in parts:
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert list(texts.values()) == [prompt + "!" for prompt in PROMPTS]


async def test_few_of_many_prompts_are_open_at_once(gateway: RunningGateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("a"), Hang()]
    body = {"model": "talking-model", "prompt": PROMPTS, "stream": True}
    async with gateway.http.stream("POST", "/v1/completions", json=body) as answer:
        await anext(answer.aiter_lines())
        await eventually(lambda: len(engine.submits) >= MAX_AT_ONCE)
    await eventually(lambda: len(engine.cancelled) == MAX_AT_ONCE)
    assert len(engine.submits) == MAX_AT_ONCE
    assert not [task for task in asyncio.all_tasks() if "_open_rest" in repr(task)]
