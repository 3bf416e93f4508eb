"""The fields that bind an answer: what is taken, what is refused and where."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rhizome_engine.core.translate import to_grammar
from rhizome_gateway.errors import ApiError
from rhizome_gateway.structure.checker import to_proto
from rhizome_gateway.structure.schema import ResponseFormat, StructuredOutputs, wanted_answer
from rhizome_grammar.spec import Grammar

ANY_OBJECT = Grammar("json_object")


def wanted(response_format=None, structured_outputs=None):
    return wanted_answer(
        response_format and ResponseFormat.model_validate(response_format),
        structured_outputs and StructuredOutputs.model_validate(structured_outputs),
    )


@pytest.mark.parametrize(
    ("asked", "grammar", "param"),
    [
        ({"type": "json_object"}, ANY_OBJECT, "response_format"),
        ({"type": "json_object", "json_schema": None}, ANY_OBJECT, "response_format"),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, ANY_OBJECT, "response_format"),
        (
            {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"type": "integer"}, "strict": None},
            },
            Grammar("json_schema", '{"type":"integer"}'),
            "response_format.json_schema.schema",
        ),
    ],
)
def test_response_formats(asked, grammar, param):
    answer = wanted(asked)
    assert (answer.grammar, answer.param) == (grammar, param)


@pytest.mark.parametrize(
    ("asked", "grammar", "param"),
    [
        ({"json": {"type": "null"}}, Grammar("json_schema", '{"type":"null"}'), "structured_outputs.json"),
        ({"json": '{"type": "null"}'}, Grammar("json_schema", '{"type":"null"}'), "structured_outputs.json"),
        ({"regex": "a+", "choice": None}, Grammar("regex", "a+"), "structured_outputs.regex"),
        ({"choice": ["a", "b"]}, Grammar("choice", choices=("a", "b")), "structured_outputs.choice"),
        ({"grammar": 'start: "a"'}, Grammar("lark", 'start: "a"'), "structured_outputs.grammar"),
    ],
)
def test_structured_outputs(asked, grammar, param):
    answer = wanted(structured_outputs=asked)
    assert (answer.grammar, answer.param) == (grammar, param)


def test_text_binds_nothing():
    assert wanted({"type": "text"}) is None
    assert wanted() is None
    assert wanted({"type": "text"}, {"regex": "a"}).param == "structured_outputs.regex"


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        ({"type": "yaml"}, ("type",)),
        ({"type": "json_schema"}, ()),
        ({"type": "json_schema", "json_schema": {}}, ("json_schema", "name")),
        ({"type": "json_schema", "json_schema": {"name": "a b"}}, ("json_schema", "name")),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": [1]}}, ("json_schema", "schema")),
        ({"type": "json_schema", "json_schema": {"name": "a", "strict": "yes"}}, ("json_schema", "strict")),
    ],
)
def test_a_wrong_response_format_is_refused_at_its_field(asked, where):
    with pytest.raises(ValidationError) as raised:
        ResponseFormat.model_validate(asked)
    assert raised.value.errors()[0]["loc"] == where


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"json": None},
        {"regex": "a", "choice": ["a"]},
        {"json": "{"},
        {"json": "[1]"},
        {"json": 3},
        {"choice": "a"},
    ],
)
def test_structured_outputs_are_exactly_one_thing(asked):
    with pytest.raises(ValidationError):
        StructuredOutputs.model_validate(asked)


@pytest.mark.parametrize(
    ("asked", "code", "param"),
    [
        ({"choice": []}, "invalid_value", "structured_outputs.choice"),
        ({"choice": ["a", ""]}, "invalid_value", "structured_outputs.choice"),
        ({"choice": ["a" * 300_000]}, "invalid_value", "structured_outputs.choice"),
        ({"regex": "a" * 17_000}, "invalid_value", "structured_outputs.regex"),
        ({"grammar": "start: <[1-9]>"}, "invalid_value", "structured_outputs.grammar"),
        ({"json": {"pattern": "a" * 17_000}}, "invalid_json_schema", "structured_outputs.json"),
        ({"json": {"enum": ["a" * 300_000]}}, "invalid_json_schema", "structured_outputs.json"),
    ],
)
def test_what_is_too_large_or_empty_is_refused_before_it_is_compiled(asked, code, param):
    with pytest.raises(ApiError) as raised:
        wanted(structured_outputs=asked)
    assert (raised.value.status, raised.value.code, raised.value.param) == (400, code, param)
    assert "aaa" not in raised.value.message


def test_two_fields_cannot_both_bind_the_answer():
    with pytest.raises(ApiError) as raised:
        wanted({"type": "json_object"}, {"regex": "a"})
    assert raised.value.param == "structured_outputs"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), unique=True, min_size=1))
def test_properties_keep_the_order_in_which_the_client_wrote_them(names):
    schema = {"type": "object", "properties": {name: {"type": "null"} for name in names}}
    answer = wanted(structured_outputs={"json": schema})
    assert list(json.loads(answer.grammar.text)["properties"]) == names


@pytest.mark.parametrize(
    "grammar",
    [
        ANY_OBJECT,
        Grammar("json_schema", '{"b": 1, "a": 2}', flexible_whitespace=True),
        Grammar("regex", "a+"),
        Grammar("choice", choices=("b", "a")),
        Grammar("lark", "start: @a @b", parts=(("a", Grammar("regex", "a")), ("b", ANY_OBJECT))),
    ],
)
def test_the_engine_understands_what_the_gateway_means(grammar):
    assert to_grammar(to_proto(grammar)) == grammar
