import asyncio

import anthropic
import httpx2
import pytest
from anthropic.types import Message
from tests.gateway.anthropic.conftest import BODY, CALL, HI, WEATHER, anthropic_gateway, strictly

from rhizome.engine.v1.generate_pb2 import FinishReason
from rhizome_testing.talking_engine import Finish, Say, TalkingEngine


async def test_answers_the_official_client(client, engine: TalkingEngine) -> None:
    message = await client.messages.create(**BODY, system="Be brief.")
    strictly(Message, message.to_dict())
    assert message.id.startswith("msg_") and message.model == "talking-model"
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "Hello!"}]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert engine.prompts == [
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ]


async def test_the_synchronous_client_works(gateway) -> None:
    def ask() -> tuple[Message, int]:
        with anthropic.Anthropic(
            base_url=gateway.url, api_key="x", http_client=httpx2.Client(trust_env=False)
        ) as client:
            with client.messages.stream(**BODY) as stream:
                text = "".join(stream.text_stream)
                assert text == "Hello!" and stream.get_final_text() == text
            counted = client.messages.count_tokens(model="talking-model", messages=HI)
            return client.messages.create(**BODY), counted.input_tokens

    message, counted = await asyncio.to_thread(ask)
    assert message.content[0].text == "Hello!"
    assert counted == message.usage.input_tokens + message.usage.cache_read_input_tokens


async def test_cached_tokens_are_not_input_tokens(client, engine: TalkingEngine) -> None:
    usage = (await client.messages.create(**BODY)).usage
    assert usage.cache_read_input_tokens == 3 and usage.cache_creation_input_tokens == 0
    assert usage.input_tokens + 3 == len(engine.submits[0].request.token_ids.ids)
    assert usage.output_tokens == 6 and usage.output_tokens_details.thinking_tokens == 0


async def test_thinking_text_and_calls_are_blocks_in_their_order(client, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(f"<think>Hm. Rain?</think>\n\nI look.\n{CALL}\n{CALL}")]
    message = await client.messages.create(**BODY, tools=[WEATHER])
    strictly(Message, message.to_dict())
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    thinking, text, first, second = message.content
    assert (thinking.thinking, thinking.signature) == ("Hm. Rain?", "")
    assert text.text == "I look."
    assert first.name == "get_weather" and first.input == {"city": "Zürich"}
    assert first.id.startswith("toolu_") and first.id != second.id
    assert message.stop_reason == "tool_use"
    assert message.usage.output_tokens_details.thinking_tokens > 0


async def test_thinking_can_be_left_out(client, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("<think>secret</think>Hello")]
    config = {"type": "adaptive", "display": "omitted"}
    message = await client.messages.create(**BODY, thinking=config)
    assert [block.to_dict() for block in message.content] == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": "Hello"},
    ]


async def test_a_stop_sequence_is_named(client, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("one two three")]
    message = await client.messages.create(**BODY, stop_sequences=["three", "two"])
    assert message.content[0].text == "one "
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "two")


async def test_max_tokens_is_the_reason(client, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("one"), Finish(FinishReason.FINISH_REASON_LENGTH)]
    message = await client.messages.create(**BODY)
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
    assert engine.submits[0].request.stop.max_tokens == 100


async def test_more_tokens_than_the_context_holds_end_with_it(client, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("one"), Finish(FinishReason.FINISH_REASON_LENGTH)]
    message = await client.messages.create(**BODY | {"max_tokens": 32_000}, timeout=10)
    assert message.stop_reason == "model_context_window_exceeded"
    request = engine.submits[0].request
    assert request.stop.max_tokens == engine.max_context_tokens - len(request.token_ids.ids)


async def test_a_call_that_was_cut_off_has_the_arguments_that_are_certain(
    client, engine: TalkingEngine
) -> None:
    cut = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern", "days": [1, 2], "unit": "cel'
    engine.script = lambda prompt: [Say(cut), Finish(FinishReason.FINISH_REASON_LENGTH)]
    whole = await client.messages.create(**BODY, tools=[WEATHER])
    async with client.messages.stream(**BODY, tools=[WEATHER]) as stream:
        streamed = await stream.get_final_message()
    assert whole.stop_reason == streamed.stop_reason == "max_tokens"
    for message in (whole, streamed):
        if message.content[0].type == "tool_use":
            assert message.content[0].input == {"city": "Bern", "days": [1, 2]}
    assert [block.type for block in whole.content] == [block.type for block in streamed.content]


@pytest.mark.parametrize("text", ['{"n": 1e400, "big": 100000000000000000000000}', '{"half": "\\ud800"}'])
async def test_arguments_are_passed_on_as_the_model_wrote_them(gateway, engine: TalkingEngine, text) -> None:
    call = f'<tool_call>{{"name": "get_weather", "arguments": {text}}}</tool_call>'
    engine.script = lambda prompt: [Say(call)]
    answer = await gateway.http.post("/v1/messages", json=BODY | {"tools": [WEATHER]})
    assert f'"input":{text}' in answer.text


async def test_an_answer_without_text_has_no_blocks(client, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("")]
    assert (await client.messages.create(**BODY)).content == []


async def test_aliases_are_models(engine: TalkingEngine) -> None:
    async with anthropic_gateway(engine, model_alias=("claude-opus-9=talking-model",)) as gateway:
        answer = await gateway.http.post("/v1/messages", json=BODY | {"model": "claude-opus-9"})
        assert answer.json()["model"] == "claude-opus-9"


async def test_every_response_names_the_request(gateway) -> None:
    good = await gateway.http.post("/v1/messages?beta=true", json=BODY, headers={"x-request-id": "mine"})
    bad = await gateway.http.post("/v1/messages", json={}, headers={"x-request-id": "mine"})
    assert good.headers["request-id"] == good.headers["x-request-id"] == "mine"
    assert bad.headers["request-id"] == bad.json()["request_id"] == "mine"
