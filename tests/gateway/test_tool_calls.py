import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome.engine.v1.generate_pb2 import FinishReason
from rhizome_gateway.generation.tool_calls import ToolCallParser, parse_calls
from rhizome_testing.talking_engine import Finish, Say, TalkingEngine

NAMES = {"get_weather", "add"}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in NAMES]
CALL = '{"name": "get_weather", "parameters": {"city":  "Zürich", "days": 1.0}}'

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text(max_size=6), JSON, max_size=4)


def _run(parser: ToolCallParser, pieces: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    shown = [parser.push(piece) for piece in pieces]
    rest, calls = parser.finish()
    return [*shown, rest], [(call.name, call.arguments) for call in calls]


@given(arguments=st.lists(ARGUMENTS, min_size=1, max_size=3), data=st.data())
@settings(max_examples=200, deadline=None)
def test_calls_are_found_however_the_text_is_cut(
    arguments: list[dict[str, Any]], data: st.DataObject
) -> None:
    indent = data.draw(st.sampled_from([None, 1]))
    raw = [json.dumps(each, indent=indent, ensure_ascii=data.draw(st.booleans())) for each in arguments]
    text = data.draw(st.sampled_from(["\n", "; ", ""])).join(
        f'{{"name": "add", "parameters": {each}}}' for each in raw
    )
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=10)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    shown, calls = _run(ToolCallParser(NAMES), pieces)
    assert "".join(shown) == ""
    assert calls == [("add", each) for each in raw]


@given(text=st.text(alphabet='{}[]":,name ptyrs\n1', max_size=40), data=st.data())
@settings(max_examples=400, deadline=None)
def test_text_without_calls_comes_out_whole(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=10)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    shown, calls = _run(ToolCallParser(NAMES), pieces)
    assert ("".join(shown), calls) == (text, [])


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "unknown", "parameters": {}}',
        '{"name": "add", "parameters": [1]}',
        '{"name": "add", "parameters": {"a": NaN}}',
        '{"name": "add", "parameters": {"a": 1}',
        '{"name": "add", "parameters": {"a": 1}} and more',
        '{"name": 5, "parameters": {}}',
        '{"parameters": {}}',
        '{"name": "add",}',
        '{"name": "add", "parameters": ' + '{"a":' * 5000,
        '{"function": 1}',
        "{'name': 'add'}",
    ],
)
def test_what_only_looks_like_a_call_is_text(text: str) -> None:
    shown, calls = _run(ToolCallParser(NAMES), list(text))
    assert ("".join(shown), calls) == (text, [])


def test_text_is_shown_as_soon_as_it_cannot_be_a_call() -> None:
    parser = ToolCallParser(NAMES)
    assert parser.push(" ") == ""
    assert parser.push("It is") == " It is"
    assert parser.push(" {") == " {"
    other = ToolCallParser(NAMES)
    assert other.push('{"na') == ""
    assert other.push('med": 1') == '{"named": 1'


def test_other_spellings_of_calls() -> None:
    for text in (
        '{"name": "add", "arguments": {"a": 1}}',
        '{"type": "function", "name": "add", "parameters": {"a": 1}}',
        '{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}',
        ' \n{ "parameters": {"a": 1}, "name": "add" } ',
    ):
        assert [(call.name, call.arguments) for call in parse_calls(text, NAMES)] == [("add", '{"a": 1}')]
    assert [call.arguments for call in parse_calls('{"name": "add"}', NAMES)] == ["{}"]


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


async def test_a_call_that_was_cut_off_is_text(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(CALL[:30]), Finish(FinishReason.FINISH_REASON_LENGTH)]
    choice = (await gateway.chat(tools=TOOLS)).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL[:30], "length")


async def test_without_tools_json_is_text(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(CALL)]
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = (await gateway.chat(**fields)).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
