"""Whatever a model without preferences says when calls are forced, the parser of that format reads it."""

import json
import re

import pytest

from rhizome_gateway.errors import ApiError
from rhizome_gateway.generation.events import CallArguments, CallBegun, Text
from rhizome_gateway.structure.request_grammar import grammar_for
from rhizome_gateway.structure.schema import ResponseFormat

from .conftest import calls_of, tool

FORMATS = ["hermes", "llama3_json", "mistral", "pythonic"]
WEATHER = tool(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"$ref": "#/$defs/city"},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "metric": {"type": "boolean"},
            "unit": {"enum": ["c", "f", None, True]},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
        "$defs": {"city": {"type": "string", "pattern": "^[A-Z][a-z/\"']{1,5}$"}},
    },
)
CLOCK = tool("clock.now", None, index=1)
PING = tool("ping-all", {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}}, index=2)
CLOSED_PING = tool("ping-all", PING.parameters | {"additionalProperties": False}, index=2)


def read(parser, text):
    """Text, and the calls as (name, arguments)."""
    shown, names, arguments = "", [], []
    for event in [*parser.push(text), *parser.finish()]:
        match event:
            case Text():
                shown += event.text
            case CallBegun():
                names.append(event.name)
                arguments.append("")
            case CallArguments():
                arguments[event.call] += event.text
    return shown, list(zip(names, map(json.loads, arguments), strict=True))


def check_weather(arguments):
    assert set(arguments) <= {"city", "days", "metric", "unit", "tags"} and {"city", "unit"} <= set(arguments)
    assert isinstance(arguments["city"], str) and 2 <= len(arguments["city"]) <= 6
    assert arguments["unit"] in ("c", "f", None, True)
    assert type(arguments.get("metric", True)) is bool
    assert 1 <= arguments.get("days", 1) <= 14
    assert all(type(each) is bool for each in arguments.get("tags", []))


@pytest.mark.parametrize("name", FORMATS)
async def test_required_gives_calls_of_the_declared_tools_and_nothing_else(model, name):
    calls, parser = calls_of(name, WEATHER, CLOCK, CLOSED_PING)
    grammar = await grammar_for(model.checker, tool_calls=calls)
    seen, counts = set(), set()
    for seed in range(25):
        text = model.say(grammar, seed)
        assert text is not None
        shown, called = read(parser(), text)
        assert not shown.strip() and called, text
        counts.add(len(called))
        for function, arguments in called:
            seen.add(function)
            match function:
                case "get_weather":
                    check_weather(arguments)
                case "clock.now":
                    assert arguments == {}
                case "ping-all":
                    assert arguments == {} or arguments["n"] <= 9
    assert seen == {"get_weather", "clock.now", "ping-all"}
    assert 1 in counts and max(counts) > 1


@pytest.mark.parametrize("name", FORMATS)
async def test_without_parallel_calls_there_is_exactly_one(model, name):
    calls, parser = calls_of(name, CLOCK, CLOSED_PING, parallel=False)
    grammar = await grammar_for(model.checker, tool_calls=calls)
    for seed in range(10):
        shown, called = read(parser(), model.say(grammar, seed))
        assert not shown.strip() and len(called) == 1


@pytest.mark.parametrize("name", FORMATS)
async def test_a_named_choice_calls_that_function(model, name):
    calls, parser = calls_of(name, CLOCK)
    grammar = await grammar_for(model.checker, tool_calls=calls)
    _, called = read(parser(), model.say(grammar, 3))
    assert called and all(call == ("clock.now", {}) for call in called)


@pytest.mark.parametrize("name", ["hermes", "llama3_json", "mistral"])
async def test_a_tool_that_is_not_strict_takes_any_object(plain, name):
    loose = tool("f", {"type": "object", "not": {"required": ["x"]}}, strict=False)
    calls, _ = calls_of(name, loose)
    await grammar_for(plain.checker, tool_calls=calls)
    strict, _ = calls_of(name, tool("f", loose.parameters))
    with pytest.raises(ApiError) as raised:
        await grammar_for(plain.checker, tool_calls=strict)
    assert (raised.value.status, raised.value.code) == (400, "invalid_json_schema")
    assert raised.value.param == "tools[0].function.parameters"


@pytest.mark.parametrize("name", FORMATS)
async def test_a_tool_that_need_not_be_strict_is_held_to_a_schema_that_can_be(plain, name):
    """LlamaIndex sends `strict: false` with every tool, and reads arguments by the schema all the same."""
    schema = {"type": "object", "properties": {"sides": {"enum": [6, 20]}}, "required": ["sides"]}
    closed = schema | {"additionalProperties": False}
    calls, parser = calls_of(name, tool("f", closed, strict=False), parallel=False)
    grammar = await grammar_for(plain.checker, tool_calls=calls)
    for seed in range(4):
        _, called = read(parser(), plain.say(grammar, seed))
        assert called in ([("f", {"sides": 6})], [("f", {"sides": 20})])


async def test_a_python_call_that_is_not_strict_takes_any_value_for_its_names(plain):
    properties = {"a": {"not": {}}, "b": {"type": "null"}}
    loose = tool("f", {"properties": properties, "required": ["a"]}, strict=False)
    calls, parser = calls_of("pythonic", loose, parallel=False)
    grammar = await grammar_for(plain.checker, tool_calls=calls)
    texts = [text for seed in range(40) if (text := plain.say(grammar, seed, most=300))]
    # A number too large for Python is none for the parser either.
    texts = [text for text in texts if not re.search(r"\d[eE]", text)]
    given = {name for text in texts for name in read(parser(), text)[1][0][1]}
    assert len(texts) > 10 and given == {"a", "b"}


@pytest.mark.parametrize("name", FORMATS)
async def test_the_tool_with_the_bad_schema_is_named(plain, name):
    bad = tool("bad", {"type": "object", "properties": {"a": {"uniqueItems": True}}}, index=1)
    calls, _ = calls_of(name, WEATHER, bad, CLOCK)
    with pytest.raises(ApiError, match="uniqueItems") as raised:
        await grammar_for(plain.checker, tool_calls=calls)
    assert raised.value.param == "tools[1].function.parameters"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", ["string", ["array", "null"], 3])
async def test_arguments_must_be_an_object(plain, name, kind):
    calls, _ = calls_of(name, tool("f", {"type": kind}))
    with pytest.raises(ApiError, match="type object") as raised:
        await grammar_for(plain.checker, tool_calls=calls)
    assert raised.value.status == 400


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "properties": {"not-a-name": {"type": "integer"}}},
        {"type": "object", "properties": {"class": {"type": "integer"}}},
        {"type": "object", "required": ["unlisted"]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}},
        {"type": "object", "properties": {"self": {"$ref": "#"}}},
    ],
)
async def test_what_python_calls_cannot_say_is_refused(plain, parameters):
    calls, _ = calls_of("pythonic", tool("f", parameters))
    with pytest.raises(ApiError) as raised:
        await grammar_for(plain.checker, tool_calls=calls)
    assert (raised.value.status, raised.value.param) == (400, "tools[0].function.parameters")


async def test_mistral_writes_names_where_its_vocabulary_has_the_tag(plain, marked):
    calls, _ = calls_of("mistral", CLOCK)
    objects = plain.say(await grammar_for(plain.checker, tool_calls=calls), 0)
    names = marked.say(await grammar_for(marked.checker, tool_calls=calls), 0)
    assert objects.startswith('[TOOL_CALLS][{"name": "clock.now", "arguments": {}}')
    assert names.startswith("[TOOL_CALLS]clock.now[ARGS]{}")


PERSON = ResponseFormat.model_validate(
    {
        "type": "json_schema",
        "json_schema": {
            "name": "person",
            "schema": {
                "type": "object",
                "properties": {
                    "name": {"enum": ["Ada", "clock.now"]},
                    "age": {"type": "integer", "maximum": 99},
                },
                "required": ["name", "age"],
                "additionalProperties": False,
            },
        },
    }
)


@pytest.mark.parametrize("name", FORMATS)
async def test_with_tools_to_choose_from_the_answer_is_calls_or_the_format(model, name):
    calls, parser = calls_of(name, CLOCK, CLOSED_PING, required=False)
    grammar = await grammar_for(model.checker, tool_calls=calls, response_format=PERSON)
    kinds = set()
    for seed in range(40):
        shown, called = read(parser(), model.say(grammar, seed))
        kinds.add(bool(called))
        if called:
            assert not shown.strip()
        else:
            assert json.loads(shown)["name"] in ("Ada", "clock.now")
    assert kinds == {True, False}


async def test_a_required_call_leaves_nothing_for_the_format_to_bind(plain):
    calls, _ = calls_of("hermes", CLOCK)
    both = await grammar_for(plain.checker, tool_calls=calls, response_format=PERSON)
    assert both == await grammar_for(plain.checker, tool_calls=calls)


async def test_tools_to_choose_from_alone_bind_nothing(plain):
    calls, _ = calls_of("hermes", CLOCK, required=False)
    assert await grammar_for(plain.checker, tool_calls=calls) is None


@pytest.mark.parametrize("name", FORMATS)
async def test_a_hundred_tools_with_large_schemas(plain, name):
    properties = {f"argument_{i}": {"type": "string", "description": "x" * 200} for i in range(5)}
    schema = {"type": "object", "properties": properties, "required": ["argument_0"]}
    tools = [tool(f"tool_{i}", schema, index=i) for i in range(128)]
    calls, _ = calls_of(name, *tools)
    assert sum(len(json.dumps(each.parameters)) for each in tools) > 128 * 1024
    assert await grammar_for(plain.checker, tool_calls=calls) is not None


@pytest.mark.parametrize("name", FORMATS)
async def test_names_never_become_grammar(plain, name):
    calls, _ = calls_of(name, tool('f" | /.*/ | "', None))
    text = plain.say(await grammar_for(plain.checker, tool_calls=calls), 1)
    assert ('f" | /.*/ | "' in text) or (r"f\" | /.*/ | \"" in text)
