"""What other servers call the fields that bind an answer."""

import pytest

from rhizome_gateway.errors import ApiError
from rhizome_gateway.openai.chat.request import ChatCompletionRequest
from rhizome_gateway.openai.completions.request import CompletionRequest
from rhizome_gateway.schema.ignored import ignored_fields
from rhizome_gateway.schema.validation import validate
from rhizome_gateway.structure.form_fields import OTHER_NAMES
from rhizome_gateway.structure.schema import Answer, wanted_answer
from rhizome_grammar.spec import Grammar

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "m", "prompt": "hi"}
SCHEMA = {"type": "object", "properties": {"b": {"type": "null"}, "a": {"type": "null"}}}
NULLS = Grammar("json_schema", '{"type":"object","properties":{"b":{"type":"null"},"a":{"type":"null"}}}')


def bound(**fields: object) -> Answer | None:
    """What the answer must match; the same in both APIs."""
    chat = validate(ChatCompletionRequest, CHAT | fields)
    text = validate(CompletionRequest, TEXT | fields)
    answer = wanted_answer(chat.response_format, chat.structured_outputs)
    assert answer == wanted_answer(text.response_format, text.structured_outputs)
    return answer


@pytest.mark.parametrize(
    ("name", "value", "grammar"),
    [
        ("guided_json", SCHEMA, NULLS),
        ("guided_json", '{"type": "null"}', Grammar("json_schema", '{"type":"null"}')),
        ("json_schema", SCHEMA, NULLS),
        ("guided_regex", "a+", Grammar("regex", "a+")),
        ("regex", "a+", Grammar("regex", "a+")),
        ("guided_choice", ["a", "b"], Grammar("choice", choices=("a", "b"))),
        ("guided_grammar", 'start: "a"', Grammar("lark", 'start: "a"')),
        ("ebnf", 'root ::= "a" | "b"', Grammar("lark", 'start: T0\nT0: ("a" | "b")\n')),
        ("grammar", 'root ::= "a" | "b"', Grammar("lark", 'start: T0\nT0: ("a" | "b")\n')),
    ],
)
def test_other_names_bind_the_answer_as_ours_do(name, value, grammar):
    assert bound(**{name: value}) == Answer(grammar, name)
    assert ignored_fields(ChatCompletionRequest, {name: value}) == []
    same = bound(structured_outputs={OTHER_NAMES[name]: value})
    assert same is not None and same.grammar == grammar


def test_a_schema_beside_json_object_binds_it():
    answer = bound(response_format={"type": "json_object", "schema": SCHEMA})
    assert answer == Answer(NULLS, "response_format.schema")
    assert bound(structured_outputs={"json_object": True}) == Answer(
        Grammar("json_object"), "structured_outputs.json_object"
    )


@pytest.mark.parametrize("name", sorted(OTHER_NAMES))
def test_null_and_empty_text_bind_nothing(name):
    assert bound(**{name: None}) is None
    if name != "guided_choice":
        assert bound(**{name: ""}) is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[1]"}, "guided_json"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"guided_choice": []}, "guided_choice"),
        ({"regex": 3}, "regex"),
        ({"ebnf": 'start ::= "a"'}, "ebnf"),
        ({"grammar": "root ::= ("}, "grammar"),
        ({"regex": "a" * 17_000}, "regex"),
        ({"regex": "a", "ebnf": 'root ::= "a"'}, "ebnf"),
        ({"guided_regex": "a", "structured_outputs": {"regex": "a"}}, "guided_regex"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object"),
    ],
)
def test_errors_name_the_field_that_the_client_sent(fields, param):
    with pytest.raises(ApiError) as raised:
        bound(**fields)
    assert (raised.value.status, raised.value.param) == (400, param)
