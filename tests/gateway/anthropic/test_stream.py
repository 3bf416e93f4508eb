import asyncio
import json
from typing import Any

import anthropic
import grpc
import pytest
from anthropic.types import RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.anthropic.conftest import BODY, CALL, WEATHER, anthropic_gateway, strictly
from tests.gateway.conftest import RunningGateway, eventually

from rhizome.common.v1.common_pb2 import Timings
from rhizome_gateway.anthropic.rendering import MessageRendering
from rhizome_gateway.generation.events import Begun, Ended, ParsedEvent, Text
from rhizome_gateway.generation.summary import Answer, Summary
from rhizome_gateway.parsing.formats import REASONING_FORMATS, TOOL_FORMATS, OutputFormats, output_parser
from rhizome_testing.talking_engine import Hang, Pause, Refuse, Say, TalkingEngine
from rhizome_transport.errors import EngineError

STREAM = BODY | {"stream": True}
PING = {"type": "ping"}


def parsed(body: str) -> list[Any]:
    """The data of each event, after a check of its frame and of its type."""
    blocks = body.split("\n\n")
    assert blocks.pop() == ""
    events = []
    for block in blocks:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] == "error":
            strictly(ErrorResponse, event)
        elif event != PING:
            strictly(RawMessageStreamEvent, event)
        events.append(event)
    return events


def well_formed(events: list[Any]) -> None:
    """Blocks are numbered, complete and never interleaved, within the frame that clients know."""
    kinds = [event["type"] for event in events if event != PING]
    assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"]
    open_block, last = None, -1
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert open_block is None and event["index"] == last + 1
                open_block = last = event["index"]
            case "content_block_delta":
                assert event["index"] == open_block
            case "content_block_stop":
                assert event["index"] == open_block
                open_block = None
            case "message_delta":
                assert open_block is None


async def streamed(gateway: RunningGateway, **fields: Any) -> list[Any]:
    answer = await gateway.http.post("/v1/messages", json=STREAM | fields)
    assert answer.status_code == 200, answer.text
    return parsed(answer.text)


async def test_the_order_and_shape_of_events(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("H")]
    answer = await gateway.http.post("/v1/messages", json=STREAM)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    events = parsed(answer.text)
    message_id = events[0]["message"]["id"]
    prompt = len(engine.submits[0].request.token_ids.ids)
    usage = {
        "input_tokens": prompt - 3,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 3,
    }
    assert events == [
        {
            "type": "message_start",
            "message": {
                "id": message_id,
                "type": "message",
                "role": "assistant",
                "model": "talking-model",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": usage | {"output_tokens": 0},
            },
        },
        PING,
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "H"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": usage | {"output_tokens": 1, "output_tokens_details": {"thinking_tokens": 0}},
        },
        {"type": "message_stop"},
    ]


async def test_the_official_client_adds_the_pieces_up(client, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(f"<think>Hm, 你好</think>Look 😀\n{CALL}{CALL}")]
    async with client.messages.stream(**BODY, tools=[WEATHER]) as stream:
        kinds = [event.type async for event in stream]
        message = await stream.get_final_message()
    assert {"thinking", "signature", "text", "input_json"} <= set(kinds)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.content[0].thinking == "Hm, 你好"
    assert message.content[1].text == "Look 😀"
    assert [block.input for block in message.content[2:]] == [{"city": "Zürich"}] * 2
    assert message.stop_reason == "tool_use"
    assert message.usage.output_tokens == len(f"<think>Hm, 你好</think>Look 😀\n{CALL}{CALL}".encode())


async def test_raw_events_reach_the_official_client(client, engine: TalkingEngine) -> None:
    events = [event async for event in await client.messages.create(**STREAM)]
    assert events[0].type == "message_start" and events[-1].type == "message_stop"
    assert all(event.type != "ping" for event in events)


async def test_calls_have_blocks_of_their_own(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(f"{CALL}\n{CALL}")]
    events = await streamed(gateway, tools=[WEATHER])
    well_formed(events)
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [(block["type"], block["name"], block["input"]) for block in starts] == [
        ("tool_use", "get_weather", {})
    ] * 2
    for index in (0, 1):
        pieces = [
            event["delta"]["partial_json"]
            for event in events
            if event.get("index") == index and "delta" in event
        ]
        assert "".join(pieces) == '{"city":  "Zürich"}' and all(pieces)


async def test_an_empty_answer_has_no_blocks(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("")]
    events = await streamed(gateway)
    assert [event["type"] for event in events] == ["message_start", "ping", "message_delta", "message_stop"]


async def test_a_silence_is_broken_by_pings(engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("a"), Pause(0.25), Say("b")]
    async with anthropic_gateway(engine, keep_alive_s=0.05) as gateway:
        events = await streamed(gateway)
    well_formed(events)
    first = next(i for i, event in enumerate(events) if event["type"] == "content_block_delta")
    assert events[first + 1] == PING


async def test_an_error_amid_a_stream_is_an_event(gateway, client, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [
        Say("a"), Pause(0.05), Refuse(EngineError(grpc.StatusCode.INTERNAL, "10.0.0.7 broke")),
    ]  # fmt: skip
    answer = await gateway.http.post("/v1/messages", json=STREAM)
    last = parsed(answer.text)[-1]
    assert last["type"] == "error" and last["error"]["type"] == "api_error"
    assert last["request_id"] == answer.headers["request-id"]
    assert "10.0.0.7" not in answer.text and "message_stop" not in answer.text
    with pytest.raises(anthropic.APIStatusError) as raised:
        async with client.messages.stream(**BODY) as stream:
            await stream.until_done()
    assert raised.value.type == "api_error"


async def test_an_error_before_the_stream_has_a_status(client, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [
        Refuse(EngineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", reason="QUEUE_FULL"))
    ]
    with pytest.raises(anthropic.InternalServerError) as raised:
        await client.messages.create(**STREAM)
    assert raised.value.status_code == 503 and raised.value.type == "overloaded_error"
    assert raised.value.response.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_cancels_in_the_engine(
    gateway, engine: TalkingEngine, stream: bool
) -> None:
    engine.script = lambda prompt: [Say("a"), Hang()]
    asking = asyncio.create_task(gateway.http.post("/v1/messages", json=BODY | {"stream": stream}))
    await eventually(lambda: len(engine.submits) == 1)
    asking.cancel()
    await asyncio.wait([asking])
    await eventually(lambda: len(engine.cancelled) == 1, within_s=1)


async def test_a_client_that_closes_its_stream_cancels_in_the_engine(client, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("a"), Hang()]
    async with client.messages.stream(**BODY) as stream:
        async for text in stream.text_stream:
            assert text == "a"
            break
    await eventually(lambda: len(engine.cancelled) == 1, within_s=1)


FORMATS = OutputFormats(tools=TOOL_FORMATS["hermes"], reasoning=REASONING_FORMATS["think"])
PIECES = st.lists(
    st.sampled_from(
        ["<think>why", "</think>", "\n\n", "text 你", CALL, CALL[:30], "<tool_call>", "{", " ", "x"]
    ),
    max_size=6,
)


@given(pieces=PIECES, data=st.data(), ending=st.sampled_from(["stop", "length"]))
@settings(max_examples=200, deadline=None)
def test_a_streamed_message_is_the_whole_message(pieces: list[str], data: st.DataObject, ending: str) -> None:
    text = "".join(pieces)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    parser = output_parser(FORMATS, ["get_weather"])
    assert parser is not None
    events: list[ParsedEvent] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        events += parser.push(text[start:end])
    events += parser.finish()
    rendering = MessageRendering("msg_1", "m", request_id="", fills_context=False, show_thinking=True)
    ended = Ended(ending, 7, 2, 9, 1, Timings())
    answer, stream = Answer(), rendering.stream(Summary())
    written = b""
    for event in (Begun(7, 2), *events, Text(""), ended):
        answer.add(event)
        written += stream.event(0, event)
    sent = parsed((written + stream.end()).decode())
    well_formed(sent)
    assert _accumulated(sent) == json.loads(rendering.whole([answer], Summary()))


def _accumulated(events: list[Any]) -> Any:
    """The message as the official client adds it up."""
    from anthropic.lib.streaming._messages import accumulate_event

    snapshot, buffers = None, {}
    for event in events:
        if event != PING:
            snapshot = accumulate_event(
                event=strictly(RawMessageStreamEvent, event), current_snapshot=snapshot, json_bufs=buffers
            )
    assert snapshot is not None
    message = snapshot.to_dict()
    message.pop("stop_details", None)
    return message
