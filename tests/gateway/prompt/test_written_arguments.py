"""What a model wrote as arguments comes back from clients as it was, JSON or not."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.prompt.conftest import Serve
from tests.gateway.prompt.test_from_openai import USER, request

from rhizome_gateway.errors import ApiError
from rhizome_gateway.prompt.from_openai import chat_prompt
from rhizome_gateway.prompt.written_arguments import MAX_BROKEN_CHARS, begins_as_object, certain_object

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text('ab\\"{}é', max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "certain"),
    [
        ('{"a": 1}', {"a": 1}),
        (' {"a": {"b": [1, 2', {"a": {"b": [1, 2]}}),
        ('{"text": 85, "jepafij Toro"}}', {"text": 85}),  # the demo model wrote this one
        ('{"a": 1}}', {"a": 1}),
        ('{"a": 1, }', {"a": 1}),
        ('{"a": 1, b: 2}', {"a": 1}),
        ("{'a': 1}", {}),
        ('{"a": NaN}', {}),
        ('{"a": 1} and more', {"a": 1}),
        ("{", {}),
        ('{"a":' * 5000, {}),
        ('{"a": ' + "1" * 5000, {}),
        ('{"a": ' + "1" * 5000 + "}", {}),
        ('{"a": ' + "1" * 5000 + ', "b": "x', {}),
        ('{"a": "' + "x" * MAX_BROKEN_CHARS, {}),
        ('{"a": "' + "x" * MAX_BROKEN_CHARS + '"}', {"a": "x" * MAX_BROKEN_CHARS}),
        ("[1]", None),
        ("x", None),
        ('"a"', None),
        ("", None),
    ],
)
def test_what_is_certain(text: str, certain: object) -> None:
    assert certain_object(text) == certain
    assert begins_as_object(text) == (certain is not None)


@given(st.dictionaries(st.text("ab", max_size=2), JSON, max_size=4), st.data())
def test_a_cut_keeps_only_what_was_there(value: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(value)
    assert certain_object(text) == value
    cut = data.draw(st.integers(1, len(text)))
    certain = certain_object(text[:cut])
    assert certain is not None
    whole = list(value.items())
    for (name, part), (true_name, true) in zip(certain.items(), whole[: len(certain)], strict=True):
        assert name == true_name
        assert part == true or isinstance(part, list | dict)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":["' + '[],"' * 1_300_000,
        '{"a":[' + "[]," * 1_300_000,
        '{"a":1' + "," * 4_000_000,
        " " * 4_000_000,
    ],
    ids=["texts", "lists", "commas", "spaces"],
)
def test_broken_arguments_of_megabytes_take_no_time(text: str) -> None:
    begun = time.process_time()
    assert not certain_object(text)
    assert time.process_time() - begun < 0.3


@pytest.mark.parametrize("depth", [100, 600, 1000])
async def test_arguments_nested_deeply_are_written_or_refused(serve: Serve, depth: int) -> None:
    deep = {"name": "f", "arguments": '{"a":' + "[" * depth + "]" * depth + "}"}
    answer = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": deep}],
    }
    told = {"role": "tool", "tool_call_id": "c1", "content": "x"}
    try:
        prompt = await chat_prompt(serve(), request(USER, answer, told), None)
    except ApiError as error:
        assert (error.status, error.param) == (400, "messages[1].tool_calls[0].function.arguments")
        assert depth > 100
    else:
        assert "[" * depth + "]" * depth in prompt.text


async def test_a_conversation_goes_on_after_a_broken_call(serve: Serve) -> None:
    broken = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1, "b": "cu'}}
    answer = {"role": "assistant", "content": None, "tool_calls": [broken]}
    told = {"role": "tool", "tool_call_id": "c1", "content": "Invalid JSON; fix the errors and try again."}
    prompt = await chat_prompt(serve(), request(USER, answer, told), None)
    assert '{"name": "f", "arguments": {"a": 1}}' in prompt.text
