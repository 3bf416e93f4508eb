import asyncio
import json
import time
from typing import Any
from unittest.mock import ANY

import grpc
import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from tests.gateway.conftest import read_stream

from rhizome_testing.talking_engine import Hang, Pause, Refuse, Say, TalkingEngine, Until
from rhizome_transport.errors import EngineError

HI = [{"role": "user", "content": "Hi"}]


def _events(body: str) -> list[Any]:
    """The data of each event; every one must be a single line."""
    blocks = body.split("\n\n")
    assert blocks.pop() == ""
    lines = [block for block in blocks if not block.startswith(":")]
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


async def test_streams_to_the_official_client(gateway, engine: TalkingEngine) -> None:
    said = ["H", "éllo", " ", "你好", " ", "😀!"]
    heard = [asyncio.Event() for _ in said]
    engine.script = lambda prompt: [
        step for part, event in zip(said, heard, strict=True) for step in (Say(part), Until(event))
    ]
    stream = await gateway.openai.chat.completions.create(
        model="talking-model", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks, pieces = [], []
    async for chunk in stream:
        chunks.append(chunk)
        if chunk.choices:
            pieces.append(chunk.choices[0].delta.content or "")
            for number, event in enumerate(heard, 1):
                if "".join(pieces) == "".join(said[:number]):
                    event.set()  # each part comes before the next one is said
    assert "".join(pieces) == "Héllo 你好 😀!"
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 5
    assert chunks[-1].choices == [] and chunks[-1].usage and chunks[-1].usage.completion_tokens == 19
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in chunks}) == 1
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)


async def test_the_order_and_shape_of_chunks(gateway) -> None:
    answer = await gateway.chat(stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-request-id"]
    events = _events(answer.text)
    assert events[0]["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "", "refusal": None},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert "".join(event["choices"][0]["delta"]["content"] for event in events[1:-2]) == "Hello!"
    assert events[-2]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert events[-2]["performance"]["prefill_time_ms"] == 20.0
    assert events[-1] == "[DONE]"
    assert not any("usage" in event for event in events[:-1])


async def test_usage_comes_only_where_asked_for(gateway) -> None:
    events = _events((await gateway.chat(stream=True, stream_options={"include_usage": True})).text)
    assert all(event["usage"] is None for event in events[:-2])
    assert events[-2]["choices"] == []
    assert events[-2]["usage"] == {
        "prompt_tokens": 25,
        "completion_tokens": 6,
        "total_tokens": 31,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def test_streamed_text_is_the_text_of_the_whole_answer(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [
        Say("a\n\nb 你 st"),
        Say("op it STOP"),
        Say(b"\xff\xe4\xbd", at_once=True),
    ]
    for fields in ({}, {"stop": "STOP"}, {"stop": ["stop", "op"]}, {"stop": "xyz"}, {"logprobs": True}):
        whole = (await gateway.chat(**fields)).json()
        events = _events((await gateway.chat(stream=True, **fields)).text)[:-1]
        choices = [event["choices"][0] for event in events]
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        assert text == whole["choices"][0]["message"]["content"]
        assert choices[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
        streamed = [entry for choice in choices for entry in (choice["logprobs"] or {}).get("content", [])]
        assert streamed == (whole["choices"][0]["logprobs"] or {}).get("content", [])


async def test_choices_interleave_and_each_begins_and_ends(gateway, engine: TalkingEngine) -> None:
    events = _events((await gateway.chat(stream=True, n=3)).text)
    assert events.pop() == "[DONE]"
    for index in range(3):
        mine = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "Hello!"
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["stop"]
    assert [("performance" in event) for event in events].count(True) == 1


async def test_an_error_before_the_first_event_is_an_http_error(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [
        Refuse(
            EngineError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "The queue is full.",
                reason="QUEUE_FULL",
                retry_after_s=2.5,
            )
        )
    ]
    for stream in (True, False):
        answer = await gateway.chat(stream=stream)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "3"
        assert answer.json()["error"] == {
            "message": "The queue is full.", "type": "server_error", "param": None, "code": "overloaded",
        }  # fmt: skip


async def test_an_error_in_the_middle_is_an_event(gateway, engine: TalkingEngine) -> None:
    lost = EngineError(grpc.StatusCode.ABORTED, "The engine was lost.", reason="ENGINE_LOST")
    engine.script = lambda prompt: [Say("par"), Pause(0.05), Refuse(lost)]
    answer = await gateway.chat(stream=True)
    assert answer.status_code == 200
    events = _events(answer.text)
    assert events[-1] == "[DONE]"
    assert events[-2]["error"] == {
        "message": ANY, "type": "server_error", "param": None, "code": "engine_unavailable",
    }  # fmt: skip
    assert not any(event["choices"][0]["finish_reason"] for event in events[:-2])
    with pytest.raises(openai.APIError, match="No engine"):
        async for _ in await gateway.openai.chat.completions.create(
            model="talking-model", messages=HI, stream=True
        ):
            pass
    whole = await gateway.chat()
    assert (whole.status_code, whole.headers["retry-after"]) == (503, "1")


async def test_nothing_is_sent_while_the_request_waits(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Hang()]
    async with gateway.http.stream(
        "POST", "/v1/chat/completions", json={"model": "talking-model", "messages": HI, "stream": True}
    ) as answer:
        # `Hang` says "started" first, and that is what the status waits for.
        assert answer.status_code == 200


async def test_a_silent_stream_is_kept_alive(engine: TalkingEngine, start_gateway) -> None:
    twice = asyncio.Event()
    engine.script = lambda prompt: [Say("a"), Until(twice), Say("b")]
    async with start_gateway(engine.target, keep_alive_s=0.1) as gateway:
        await gateway.becomes_ready()
        started = time.monotonic()
        request = {"model": "talking-model", "messages": HI}
        body = await read_stream(gateway, "/v1/chat/completions", request, ": keep-alive\n\n", 2, twice)
        assert 2 <= body.count(": keep-alive\n\n") <= (time.monotonic() - started) / 0.1
        assert body.index('"a"') < body.index(": keep-alive") < body.index('"b"')
        assert len(_events(body)) == 5


async def test_text_arrives_while_it_is_generated(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("first"), Hang()]
    async with asyncio.timeout(5):
        stream = await gateway.openai.chat.completions.create(model="talking-model", messages=HI, stream=True)
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if text == "first":
                break
        await stream.close()
