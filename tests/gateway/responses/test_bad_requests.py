from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
import pytest_asyncio
from openai.types.responses import Response
from tests.gateway.conftest import RunningGateway
from tests.gateway.responses.conftest import BODY, WEATHER, responses_gateway
from tests.gateway.responses.test_codex import REQUEST

from rhizome_testing.talking_engine import TalkingEngine

# One gateway for the whole table: each test also shows that it survived the one before.
pytestmark = pytest.mark.asyncio(loop_scope="module")

INVALID = "invalid_value"
UNSUPPORTED = "unsupported_parameter"
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "42"}
HI = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "json_schema", "name": "a", "schema": {"type": "nonsense"}}


def said(*items: Any) -> dict[str, Any]:
    return {"input": [HI, *items]}


def part(kind: str, **fields: Any) -> dict[str, Any]:
    return said({"role": "user", "content": [{"type": kind, **fields}]})


def chosen(choice: Any) -> dict[str, Any]:
    return {"tools": [WEATHER], "tool_choice": choice}


# name: (fields that replace those of a good request, code, param)
REQUESTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no model": ({"model": None}, INVALID, "model"),
    "no input": ({"input": None}, INVALID, "input"),
    "no items": ({"input": []}, INVALID, "input"),
    "input of a wrong type": ({"input": 7}, INVALID, "input"),
    "an item that is no object": (said("x"), INVALID, "input[1]"),
    "an item without a type": (said({"x": 1}), UNSUPPORTED, "input[1]"),
    "an item of an unknown type": (said({"type": "web_search_call"}), UNSUPPORTED, "input[1]"),
    "a reference": (said({"type": "item_reference", "id": "msg_1"}), UNSUPPORTED, "input[1]"),
    "a reference without a type": (said({"id": "msg_1"}), UNSUPPORTED, "input[1]"),
    "an unknown role": (said({"role": "tool", "content": "x"}), INVALID, "input[1].role"),
    "no content": (said({"role": "user"}), INVALID, "input[1]"),
    "content of a wrong type": (said({"role": "user", "content": 1}), INVALID, "input[1].content"),
    "an image": (part("input_image", image_url="http://x"), "unsupported_content", "input[1].content"),
    "a file": (part("input_file", file_id="f"), "unsupported_content", "input[1].content"),
    "a part without text": (part("input_text"), INVALID, "input[1].content"),
    "a call without a name": (said(CALL | {"name": None}, OUTPUT), INVALID, "input[1]"),
    "a call without arguments": (said(CALL | {"arguments": None}, OUTPUT), INVALID, "input[1]"),
    "arguments as an object": (said(CALL | {"arguments": {}}, OUTPUT), INVALID, "input[1].arguments"),
    "arguments that are a list": (said(CALL | {"arguments": "[]"}, OUTPUT), INVALID, "input[1].arguments"),
    "a call without its output": (said(CALL), INVALID, "input[1].call_id"),
    "an output without its call": (said(OUTPUT), INVALID, "input[1].call_id"),
    "an output before its call": (said(OUTPUT, CALL), INVALID, "input[1].call_id"),
    "two outputs of a call": (said(CALL, OUTPUT, OUTPUT), INVALID, "input[3].call_id"),
    "two calls of one id": (said(CALL, CALL, OUTPUT), INVALID, "input[2].call_id"),
    "an output that is an image": (
        said(CALL, OUTPUT | {"output": [{"type": "input_image"}]}),
        "unsupported_content",
        "input[2].output",
    ),
    "changed thinking": (
        said({"type": "reasoning", "summary": [], "encrypted_content": "rhizome-1.%"}),
        INVALID,
        "input[1].encrypted_content",
    ),
    "too long": ({"input": "x" * 200_000}, "context_length_exceeded", "input"),
    "too long an answer": ({"max_output_tokens": 100_000}, "context_length_exceeded", "input"),
    "no answer": ({"max_output_tokens": 0}, INVALID, "max_output_tokens"),
    "a hot temperature": ({"temperature": 3}, INVALID, "temperature"),
    "a temperature as text": ({"temperature": "1"}, INVALID, "temperature"),
    "top_p 0": ({"top_p": 0}, INVALID, "top_p"),
    "top_logprobs 21": ({"top_logprobs": 21}, INVALID, "top_logprobs"),
    "a stored response": ({"previous_response_id": "resp_1"}, UNSUPPORTED, "previous_response_id"),
    "a stored conversation": ({"conversation": {"id": "conv_1"}}, UNSUPPORTED, "conversation"),
    "a stored prompt": ({"prompt": {"id": "pmpt_1"}}, UNSUPPORTED, "prompt"),
    "background": ({"background": True}, UNSUPPORTED, "background"),
    "unknown truncation": ({"truncation": "middle"}, INVALID, "truncation"),
    "metadata of a wrong type": ({"metadata": {"a": 1}}, INVALID, "metadata"),
    "too much metadata": ({"metadata": {str(i): "" for i in range(17)}}, INVALID, "metadata"),
    "unknown effort": ({"reasoning": {"effort": "huge"}}, INVALID, "reasoning.effort"),
    "an unknown format": ({"text": {"format": {"type": "xml"}}}, INVALID, "text.format.type"),
    "a format without a schema": (
        {"text": {"format": {"type": "json_schema", "name": "a"}}},
        INVALID,
        "text.format",
    ),
    "a schema that is none": ({"text": {"format": SCHEMA}}, "invalid_json_schema", "text.format.schema"),
    "a tool without a type": ({"tools": [{"name": "f"}]}, "missing_required_parameter", "tools[0].type"),
    "a tool without a name": ({"tools": [{"type": "function"}]}, INVALID, "tools[0]"),
    "a tool with spaces": ({"tools": [WEATHER | {"name": "a b"}]}, INVALID, "tools[0].name"),
    "a tool of the chat API": (
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        INVALID,
        "tools[0]",
    ),
    "two tools of one name": ({"tools": [WEATHER, WEATHER]}, INVALID, "tools"),
    "arguments that are no object": (
        {"tools": [{"type": "web_search"}, WEATHER | {"parameters": {"type": "array"}, "strict": True}]}
        | {"tool_choice": "required"},
        "invalid_json_schema",
        "tools[1].parameters",
    ),
    "a grammar without one": (
        {"tools": [{"type": "custom", "name": "p", "format": {"type": "grammar"}}]},
        INVALID,
        "tools[0].format",
    ),
    "namespaces in namespaces": (
        {"tools": [{"type": "namespace", "name": "a", "tools": [{"type": "namespace", "name": "b"}]}]},
        INVALID,
        "tools[0]",
    ),
    "an unknown tool_choice": (chosen("maybe"), UNSUPPORTED, "tool_choice"),
    "tool_choice of a wrong type": (chosen(5), INVALID, "tool_choice"),
    "a tool_choice that openai runs": (chosen({"type": "web_search"}), UNSUPPORTED, "tool_choice"),
    "a tool_choice without a name": (chosen({"type": "function"}), INVALID, "tool_choice"),
    "a tool_choice of another kind": (
        chosen({"type": "custom", "name": "get_weather"}),
        INVALID,
        "tool_choice",
    ),
    "a tool_choice that is no tool": (chosen({"type": "function", "name": "f"}), INVALID, "tool_choice"),
    "allowed tools that are none": (
        chosen({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}),
        INVALID,
        "tool_choice",
    ),
    "no allowed tools": (
        chosen({"type": "allowed_tools", "mode": "auto", "tools": []}),
        INVALID,
        "tool_choice.tools",
    ),
    "a required tool without tools": ({"tool_choice": "required"}, INVALID, "tool_choice"),
    "a required tool that is left out": (
        {"tools": [{"type": "web_search"}], "tool_choice": "required"},
        INVALID,
        "tool_choice",
    ),
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def gateway() -> AsyncIterator[RunningGateway]:
    async with TalkingEngine() as engine, responses_gateway(engine) as gateway:
        yield gateway


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", REQUESTS)
async def test_a_bad_request_is_refused_by_name(gateway: RunningGateway, name: str, stream: bool) -> None:
    fields, code, param = REQUESTS[name]
    answer = await gateway.http.post("/v1/responses", json=BODY | fields | {"stream": stream})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param), error
    assert error["type"] == "invalid_request_error" and error["message"]
    assert len(answer.content) < 2500


async def test_an_unknown_model_is_not_found(gateway: RunningGateway) -> None:
    for path in ("/v1/responses", "/v1/responses/input_tokens"):
        answer = await gateway.http.post(path, json=BODY | {"model": "gpt-0"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_counting_refuses_what_cannot_be_answered(gateway: RunningGateway) -> None:
    for fields in ({"previous_response_id": "r"}, said(CALL), {"input": []}, chosen("maybe")):
        answer = await gateway.http.post("/v1/responses/input_tokens", json=BODY | fields)
        assert answer.status_code == 400 and answer.json()["error"]["param"]


async def test_other_methods_are_not_allowed(gateway: RunningGateway) -> None:
    answer = await gateway.http.get("/v1/responses")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def mutated(value: Any, random: Random) -> Any:
    """The value with something else somewhere in it."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = random.choice(list(value))
        return value | {key: mutated(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.9:
        index = random.randrange(len(value))
        return [*value[:index], mutated(value[index], random), *value[index + 1 :]]
    return random.choice(
        [None, True, -1, 0.5, 10**18, "", "auto", "\u0000", [], {}, [[]], [{}], {"type": "auto"}, {"type": 1}]
    )


async def test_whatever_a_request_is_it_is_answered_or_refused(gateway: RunningGateway) -> None:
    seen = set()
    for seed in range(150):
        random = Random(seed)
        body: Any = REQUEST | {"stream": False}
        for _ in range(random.randint(1, 3)):
            body = mutated(body, random)
        answer = await gateway.http.post("/v1/responses", json=body)
        if answer.headers["content-type"] == "application/json" and answer.status_code == 200:
            Response.model_validate_json(answer.content, strict=True)
        elif answer.status_code != 200:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.status_code in (200, 400, 404), (seed, answer.text)
        seen.add(answer.status_code)
    assert seen >= {200, 400}


async def test_the_gateway_is_still_well(gateway: RunningGateway) -> None:
    assert (await gateway.http.post("/v1/responses", json=BODY)).status_code == 200
