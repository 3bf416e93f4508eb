"""OpenAI's own client cannot tell the proxy from a server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest
from tests.proxy.http.conftest import CHAT, CHATS, TEXT, Bench, Face, Reference


@pytest.fixture
async def face(bench: Bench) -> Face:
    return await bench.proxy(await bench.simulate(), await bench.simulate())


@pytest.fixture
async def sdk(face: Face) -> AsyncIterator[openai.AsyncOpenAI]:
    base = f"http://127.0.0.1:{face.proxy.http_port}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
        yield client


async def test_models(sdk):
    assert [model.id async for model in sdk.models.list()] == ["simulated"]
    assert (await sdk.models.retrieve("simulated")).owned_by == "vllm"
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.models.retrieve("absent")
    assert caught.value.code == "model_not_found"


async def test_a_chat(sdk, expected: Reference):
    answer = await sdk.chat.completions.create(model="simulated", max_tokens=8, **CHATS)
    assert answer.choices[0].message.content == await expected(CHAT, {**CHATS, "max_tokens": 8})
    assert answer.usage.completion_tokens == 8


async def test_a_completion(sdk, expected: Reference):
    answer = await sdk.completions.create(model="simulated", prompt="Once", max_tokens=8)
    assert answer.choices[0].text == await expected(TEXT, {"prompt": "Once", "max_tokens": 8})


async def test_a_stream_whose_backend_is_lost(sdk, face, bench: Bench, expected: Reference):
    for server in bench.servers:
        server.faults.reset, server.faults.count = 5, 1
    stream = await sdk.chat.completions.create(
        model="simulated", max_tokens=20, stream=True, stream_options={"include_usage": True}, **CHATS
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == await expected(CHAT, {**CHATS, "max_tokens": 20})
    assert chunks[-1].usage.completion_tokens == 20
    assert len({chunk.id for chunk in chunks}) == 1
    assert face.proxy.router.counts.resumes > 0


async def test_a_stream_that_cannot_go_on_is_an_error(sdk, bench: Bench):
    for server in bench.servers:
        server.faults.reset = 5
    stream = await sdk.chat.completions.create(
        model="simulated", max_tokens=20, stream=True, presence_penalty=1.0, **CHATS
    )
    with pytest.raises(openai.APIError) as caught:
        [chunk async for chunk in stream]
    assert "lost" in caught.value.message


async def test_errors_have_their_classes(sdk, bench: Bench):
    with pytest.raises(openai.NotFoundError):
        await sdk.chat.completions.create(model="absent", **CHATS)
    with pytest.raises(openai.BadRequestError):
        await sdk.chat.completions.create(model="simulated", messages=[])
    for server in bench.servers:
        server.faults.status = 429
    with pytest.raises(openai.RateLimitError):
        await sdk.chat.completions.create(model="simulated", **CHATS)
    for server in bench.servers:
        server.faults.status = 503
    with pytest.raises(openai.InternalServerError):
        await sdk.chat.completions.create(model="simulated", **CHATS)
