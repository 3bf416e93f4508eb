import asyncio
import re
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.gateway.conftest import eventually, read_stream
from tests.gateway.responses.conftest import (
    ARGUMENTS,
    BODY,
    CALL,
    WEATHER,
    events_of,
    responses_gateway,
    streamed,
    whole,
)

from rhizome.engine.v1.generate_pb2 import FinishReason
from rhizome_testing.talking_engine import Finish, Hang, Pause, Refuse, Say, TalkingEngine, Until
from rhizome_transport.errors import EngineError

EVERYTHING = f"<think>Hm. Rain?</think>\n\nI löök.\n{CALL}\n{CALL} Yes"
BREAKDOWN = Refuse(EngineError(grpc.StatusCode.INTERNAL, "secret 10.0.0.1"))


def shape(events: list[dict[str, Any]]) -> list[str]:
    """The names of events, neighbours that are the same once."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


def without_ids(response: dict[str, Any]) -> dict[str, Any]:
    output = [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in response["output"]]
    changing = ("id", "created_at", "completed_at", "performance", "output")
    return {k: v for k, v in response.items() if k not in changing} | {"output": output}


async def test_text_comes_in_the_official_sequence_of_events(gateway) -> None:
    events = await streamed(gateway)
    assert shape(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta") == "Hello!"
    first, last = events[0]["response"], events[-1]["response"]
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
    assert first["id"] == last["id"] and last["status"] == "completed"
    assert last["usage"]["output_tokens"] == 6 and last["performance"]["prefill_time_ms"] == 20.0


async def test_items_of_all_kinds_follow_one_another(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(EVERYTHING)]
    events = await streamed(gateway, tools=[WEATHER])
    text = ["content_part.added", "output_text.delta", "output_text.done", "content_part.done"]
    thinking = ["content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done"]
    call = ["function_call_arguments.delta", "function_call_arguments.done"]
    expected = ["created", "in_progress"]
    for item in (thinking, text, call, call, text):
        expected += ["output_item.added", *item, "output_item.done"]
    assert shape(events) == [*expected, "completed"]
    indexes = [e["output_index"] for e in events if e["type"] == "response.output_item.added"]
    assert indexes == [0, 1, 2, 3, 4]
    for event in events:
        if "item_id" in event:
            assert event["item_id"] == events[-1]["response"]["output"][event["output_index"]]["id"]


async def test_what_is_done_is_what_the_response_holds(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(EVERYTHING)]
    events = await streamed(gateway, tools=[WEATHER])
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    arguments = [e for e in events if e["type"] == "response.function_call_arguments.done"]
    assert [event["arguments"] for event in arguments] == [ARGUMENTS, ARGUMENTS]


SETTINGS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "a", "ö", "\n", " ", "{", CALL, CALL[:-20], "<tool_call>"]),
    max_size=8,
)


def test_a_stream_says_what_a_whole_response_says() -> None:
    async def check(runner_gateway: Any, engine: TalkingEngine, pieces: list[str], fields: Any) -> None:
        engine.script = lambda prompt: [Say(piece, at_once=len(piece) % 2 == 0) for piece in pieces or [""]]
        at_once = await whole(runner_gateway, **fields)
        events = await streamed(runner_gateway, **fields)
        assert without_ids(events[-1]["response"]) == without_ids(at_once)
        deltas: dict[int, str] = {}
        for event in events:
            if event["type"].endswith(".delta"):
                index = event["output_index"]
                deltas[index] = deltas.get(index, "") + event["delta"]
        for index, item in enumerate(events[-1]["response"]["output"]):
            said = item["content"][0]["text"] if "content" in item else item["arguments"]
            assert deltas.get(index, "") == said

    with asyncio.Runner() as runner:
        engine = TalkingEngine()
        runner.run(engine.__aenter__())
        manager = responses_gateway(engine)
        gateway = runner.run(manager.__aenter__())

        @SETTINGS
        @given(pieces=PIECES, scored=st.booleans())
        def said_either_way(pieces: list[str], scored: bool) -> None:
            fields = {"tools": [WEATHER], "include": ["message.output_text.logprobs"] if scored else []}
            runner.run(check(gateway, engine, pieces, fields))

        try:
            said_either_way()
        finally:
            runner.run(manager.__aexit__(None, None, None))
            runner.run(engine.__aexit__(None, None, None))


async def test_a_stream_that_was_cut_off_ends_incomplete(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("one"), Finish(FinishReason.FINISH_REASON_LENGTH)]
    events = await streamed(gateway)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-2]["item"]["status"] == "incomplete"


async def test_an_error_in_the_middle_fails_the_response(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("<think>a</think>bc"), BREAKDOWN]
    events = await streamed(gateway)
    assert events[-1]["type"] == "response.failed"
    response = events[-1]["response"]
    assert response["status"] == "failed" and response["error"]["code"] == "server_error"
    assert response["error"]["message"] and "10.0.0.1" not in response["error"]["message"]
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert response["output"][1]["content"][0]["text"] == "bc"


async def test_an_error_before_the_first_event_has_a_status(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Refuse(EngineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "full"))]
    answer = await gateway.http.post("/v1/responses", json=BODY | {"stream": True})
    assert answer.status_code in (429, 503) and answer.headers["retry-after"]
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_silence_is_broken_by_comments(engine: TalkingEngine) -> None:
    twice = asyncio.Event()
    engine.script = lambda prompt: [Until(twice), Say("late")]
    async with responses_gateway(engine, keep_alive_s=0.02) as gateway:
        text = await read_stream(gateway, "/v1/responses", BODY, ": keep-alive\n\n", 2, twice)
    assert len(re.findall(r"^: keep-alive$", text, re.MULTILINE)) >= 2
    assert events_of(text)[-1]["type"] == "response.completed"


async def test_there_is_no_end_mark(gateway) -> None:
    answer = await gateway.http.post("/v1/responses", json=BODY | {"stream": True})
    assert "[DONE]" not in answer.text


async def test_a_client_that_leaves_stops_the_engine(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("x"), Hang()]
    async with gateway.http.stream("POST", "/v1/responses", json=BODY | {"stream": True}) as answer:
        async for line in answer.aiter_lines():
            if "output_text.delta" in line:
                break
    await eventually(lambda: bool(engine.cancelled))


@pytest.mark.parametrize("late", [False, True])
async def test_a_failed_stream_begins_like_any_other(engine: TalkingEngine, late: bool) -> None:
    """Also when the engine refuses after the first comment."""
    engine.script = lambda prompt: [Say("a"), Pause(0.05), BREAKDOWN] if not late else [Pause(0.1), BREAKDOWN]
    async with responses_gateway(engine, keep_alive_s=0.02) as gateway:
        events = await streamed(gateway)
    assert [event["type"] for event in (events[0], events[-1])] == ["response.created", "response.failed"]
