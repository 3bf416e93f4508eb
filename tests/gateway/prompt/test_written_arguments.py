"""What a model wrote as arguments comes back from clients as it was, JSON or not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.prompt.conftest import Serve
from tests.gateway.prompt.test_from_openai import USER, request

from rhizome_gateway.prompt.from_openai import chat_prompt
from rhizome_gateway.prompt.written_arguments import certain_object

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
        ("[1]", None),
        ("x", None),
        ('"a"', None),
        ("", None),
    ],
)
def test_what_is_certain(text: str, certain: object) -> None:
    assert certain_object(text) == certain


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


async def test_a_conversation_goes_on_after_a_broken_call(serve: Serve) -> None:
    broken = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1, "b": "cu'}}
    answer = {"role": "assistant", "content": None, "tool_calls": [broken]}
    told = {"role": "tool", "tool_call_id": "c1", "content": "Invalid JSON; fix the errors and try again."}
    prompt = await chat_prompt(serve(), request(USER, answer, told), None)
    assert '{"name": "f", "arguments": {"a": 1}}' in prompt.text
