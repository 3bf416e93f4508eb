"""What is refused before anything is compiled."""

import pytest

from rhizome_grammar.spec import MAX_BYTES, Grammar

REGEX = Grammar("regex", "a")
LONG_REGEX = Grammar("regex", "a" * 10_000)
PART = (("a", REGEX),)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "yaml"}, "kind must be one of json_schema"),
        ({"kind": "json_schema", "text": "{"}, "json_schema is not JSON: Expecting property name"),
        ({"kind": "json_schema", "text": ""}, "json_schema is not JSON"),
        ({"kind": "json_schema", "text": "[1]"}, "json_schema must be a JSON object, not list"),
        ({"kind": "json_schema", "text": "true"}, "json_schema must be a JSON object, not bool"),
        (
            {"kind": "json_schema", "text": '{"properties": {"a": {"pattern": "%s"}}}' % ("a" * 20_000)},
            "pattern of more",
        ),
        ({"kind": "json_object", "text": "{}"}, "text must be empty"),
        ({"kind": "regex", "text": ""}, "regex must not be empty"),
        ({"kind": "regex", "text": "a\ud800"}, "regex must not contain lone surrogates"),
        ({"kind": "lark", "text": ""}, "lark must not be empty"),
        ({"kind": "lark", "text": "start: <[12-14]>"}, "single tokens by id, .* but no ranges"),
        ({"kind": "lark", "text": "start: <[^5]>"}, "single tokens by id"),
        ({"kind": "lark", "text": "start: <[*]>"}, "single tokens by id"),
        ({"kind": "regex", "text": "a", "parts": PART}, "parts belong to kind lark"),
        (
            {"kind": "lark", "text": "start: @A", "parts": (("A", REGEX),)},
            "parts must have names of lower-case",
        ),
        ({"kind": "lark", "text": "start: @b", "parts": (("start", REGEX),)}, "not be start"),
        ({"kind": "lark", "text": "start: @a", "parts": PART * 2}, "parts must have different names"),
        (
            {
                "kind": "lark",
                "text": "start: @a",
                "parts": (("a", Grammar("lark", "start: @a", parts=PART)),),
            },
            "parts must not have parts",
        ),
        (
            {"kind": "lark", "text": "start: @a", "parts": tuple((f"a{i}", REGEX) for i in range(1025))},
            "parts must be at most 1024",
        ),
        (
            {"kind": "lark", "text": "start: @a", "parts": (("a", LONG_REGEX), ("b", LONG_REGEX))},
            "regex must be at most 16384 bytes in all parts",
        ),
        ({"kind": "choice"}, "choice must have at least one text"),
        ({"kind": "choice", "choices": ("a", "")}, "choice must not contain an empty text"),
        ({"kind": "choice", "choices": ("a" * (MAX_BYTES["choice"] + 1),)}, "choice must be at most"),
        ({"kind": "choice", "text": "a", "choices": ("a",)}, "text must be empty"),
        ({"kind": "regex", "text": "a", "choices": ("a",)}, "choices belong to kind choice"),
    ],
)
def test_refuses_and_names_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        Grammar(**fields)


@pytest.mark.parametrize("kind", ["json_schema", "regex", "lark"])
def test_refuses_what_is_too_large_by_its_bytes(kind):
    with pytest.raises(ValueError, match=f"{kind} must be at most {MAX_BYTES[kind]} bytes"):
        Grammar(kind, "é" * (MAX_BYTES[kind] // 2 + 1))


def test_refuses_a_schema_that_python_cannot_even_parse():
    with pytest.raises(ValueError, match="nested too deeply"):
        Grammar("json_schema", '{"a":' * 40_000 + "1" + "}" * 40_000)


def test_schemas_with_another_order_of_properties_are_different_grammars():
    one = Grammar("json_schema", '{"properties": {"a": {}, "b": {}}}')
    other = Grammar("json_schema", '{"properties": {"b": {}, "a": {}}}')
    assert one != other
    assert hash(one) == hash(Grammar("json_schema", one.text))
