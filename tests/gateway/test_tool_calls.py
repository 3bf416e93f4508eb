import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.gateway.conftest import RunningGateway, running_gateway

from rhizome.engine.v1.generate_pb2 import FinishReason
from rhizome_testing.talking_engine import Finish, Say, TalkingEngine

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("get_weather", "add")
]
CALL = '{"name": "get_weather", "parameters": {"city":  "Zürich", "days": 1.0}}'


@pytest.fixture
async def gateway(engine: TalkingEngine) -> AsyncIterator[RunningGateway]:
    """The engine's chat template does not mention tools, so their format has to be named."""
    async with running_gateway(engine.target, tool_parser="llama3_json") as gateway:
        await gateway.becomes_ready()
        yield gateway


async def test_a_call_reaches_the_client(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(CALL)]
    completion = await gateway.openai.chat.completions.create(
        model="talking-model", messages=[{"role": "user", "content": "Weather?"}], tools=TOOLS
    )
    choice = completion.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls
    call = choice.message.tool_calls[0]
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert call.function.arguments == '{"city":  "Zürich", "days": 1.0}'
    assert call.id.startswith("call_")


async def test_a_streamed_call_is_the_same_call(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(CALL + "\n" + CALL)]
    stream = await gateway.openai.chat.completions.create(
        model="talking-model", messages=[{"role": "user", "content": "Weather?"}], tools=TOOLS, stream=True
    )
    calls: dict[int, list[str]] = {}
    reasons = []
    async for chunk in stream:
        choice = chunk.choices[0]
        assert not choice.delta.content
        reasons.append(choice.finish_reason)
        for part in choice.delta.tool_calls or []:
            known = calls.setdefault(part.index, ["", "", ""])
            known[0] += part.id or ""
            known[1] += (part.function and part.function.name) or ""
            known[2] += (part.function and part.function.arguments) or ""
    assert reasons[-1] == "tool_calls" and set(reasons[:-1]) == {None}
    assert [call[1:] for call in calls.values()] == [["get_weather", '{"city":  "Zürich", "days": 1.0}']] * 2
    assert len({call[0] for call in calls.values()}) == 2


async def test_one_call_at_most_where_asked_for(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(CALL + "\n" + CALL)]
    answer = (await gateway.chat(tools=TOOLS, parallel_tool_calls=False)).json()
    assert len(answer["choices"][0]["message"]["tool_calls"]) == 1


async def test_a_call_that_was_cut_off_keeps_what_there_is_of_it(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(CALL[:-6]), Finish(FinishReason.FINISH_REASON_LENGTH)]
    choice = (await gateway.chat(tools=TOOLS)).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert CALL[:-6].endswith(call["function"]["arguments"]) and choice["finish_reason"] == "length"


async def test_a_named_call_simply_stops(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(CALL)]
    named = {"type": "function", "function": {"name": "get_weather"}}
    answer = await gateway.chat(tools=TOOLS, tool_choice=named)
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    assert answer.json()["choices"][0]["message"]["tool_calls"]
    grammar = engine.submits[-1].request.grammar
    assert "get_weather" in str(grammar) and '"add"' not in str(grammar)


def _only(*names: str, mode: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


async def test_of_allowed_tools_only_those_are_called(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(CALL)]
    answer = (await gateway.chat(tools=TOOLS, tool_choice=_only("get_weather", mode="required"))).json()
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["tool_calls"]
    grammar = str(engine.submits[-1].request.grammar)
    assert "get_weather" in grammar and '"add"' not in grammar
    choice = (await gateway.chat(tools=TOOLS, tool_choice=_only("add", mode="auto"))).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
    assert not engine.submits[-1].request.HasField("grammar")
    both = (await gateway.chat(tools=TOOLS, tool_choice=_only("add", "get_weather", mode="auto"))).json()
    assert both["choices"][0]["message"]["tool_calls"]


async def test_the_prompt_shows_the_tools_that_are_not_allowed_too(engine: TalkingEngine) -> None:
    config = json.loads(engine.files["tokenizer_config.json"])
    config["chat_template"] = "{{ tools | tojson }}"
    engine.files["tokenizer_config.json"] = json.dumps(config).encode()
    engine.max_context_tokens = 4096
    async with running_gateway(engine.target, tool_parser="llama3_json") as gateway:
        await gateway.becomes_ready()
        await gateway.chat(tools=TOOLS, tool_choice=_only("add", mode="auto"))
    assert json.loads(engine.prompts[-1]) == TOOLS


@pytest.mark.parametrize(
    "choice",
    [
        _only("nothing", mode="auto"),
        _only(mode="required"),
        _only("add", mode="sometimes"),
        {"type": "allowed_tools"},
    ],
)
async def test_what_is_no_choice_of_tools_is_refused(gateway, choice: dict[str, Any]) -> None:
    answer = await gateway.chat(tools=TOOLS, tool_choice=choice)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("tool_choice")


async def test_a_call_is_forced_by_a_grammar(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(CALL)]
    await gateway.chat(tools=TOOLS, tool_choice="required")
    assert "get_weather" in str(engine.submits[-1].request.grammar)
    await gateway.chat(tools=TOOLS)
    assert not engine.submits[-1].request.HasField("grammar")


async def test_without_tools_json_is_text(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(CALL)]
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = (await gateway.chat(**fields)).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
