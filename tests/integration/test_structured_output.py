"""What a client asks its answers to be, they are: through gateway, proxy, engine and back."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from typing import Any, Literal

import httpx
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from rhizome_testing.running_stack import RunningStack
from rhizome_testing.time_bounds import assert_within_async

MODEL = "rhizome-demo"
HELLO: list[Any] = [{"role": "user", "content": "Tell me about Ada."}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "pattern": "^[A-Z][a-z]{1,9}$"},
                    "days": {"type": "integer", "minimum": 1, "maximum": 9},
                },
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]


class Person(BaseModel):
    name: str = Field(max_length=8)
    age: int = Field(ge=1, le=120)
    sex: Literal["f", "m"]


def test_the_parse_helper_of_the_sdk_gets_its_type(client: OpenAI) -> None:
    for seed in range(4):
        answer = client.chat.completions.parse(
            model=MODEL, messages=HELLO, response_format=Person, temperature=1.5, seed=seed
        )
        assert isinstance(answer.choices[0].message.parsed, Person)


@pytest.mark.parametrize("stream", [False, True])
def test_choices_and_expressions(stack: RunningStack, stream: bool) -> None:
    for wanted, check in (
        ({"choice": ["violet", "ultramarine"]}, r"violet|ultramarine"),
        ({"regex": "[0-9]{2}:[0-9]{2}"}, r"\d\d:\d\d"),
        ({"grammar": 'start: "(" N ")"\nN: /[1-9]{3}/'}, r"\(\d{3}\)"),
    ):
        body = {"model": MODEL, "messages": HELLO, "temperature": 1.9, "structured_outputs": wanted, "n": 3}
        answer = httpx.post(f"{stack.url}/v1/chat/completions", json=body | {"stream": stream}, timeout=60)
        texts = ["", "", ""]
        if stream:
            lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
            for choice in (choice for line in lines for choice in json.loads(line)["choices"]):
                texts[choice["index"]] += choice["delta"].get("content") or ""
        else:
            texts = [choice["message"]["content"] for choice in answer.json()["choices"]]
        assert all(re.fullmatch(check, text) for text in texts), texts


@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_is_a_call(client: OpenAI, stream: bool) -> None:
    for seed in range(4):
        asked: dict[str, Any] = {"model": MODEL, "messages": HELLO, "tools": TOOLS, "temperature": 1.5}
        asked |= {"tool_choice": "required", "parallel_tool_calls": False, "seed": seed}
        if stream:
            names, arguments = "", ""
            for chunk in client.chat.completions.create(**asked, stream=True):
                assert not chunk.choices[0].delta.content
                for call in chunk.choices[0].delta.tool_calls or []:
                    assert call.function is not None
                    names += call.function.name or ""
                    arguments += call.function.arguments or ""
        else:
            answer = client.chat.completions.create(**asked)
            (called,) = answer.choices[0].message.tool_calls
            names, arguments = called.function.name, called.function.arguments
            assert answer.choices[0].finish_reason == "tool_calls"
        value = json.loads(arguments)
        assert value == {} if names == "now" else (names == "get_weather" and 1 <= value["days"] <= 9)


def test_a_named_call_is_that_call(client: OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "now"}}
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, tools=TOOLS, tool_choice=named)
    calls = answer.choices[0].message.tool_calls or []
    assert calls and all(
        call.type == "function" and (call.function.name, call.function.arguments) == ("now", "{}")
        for call in calls
    )


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}},
            "invalid_json_schema",
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"regex": "(a"}}, "invalid_value", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "invalid_value", "structured_outputs.choice"),
        ({"structured_outputs": {}}, "invalid_value", "structured_outputs"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "invalid_value",
            "structured_outputs",
        ),
    ],
)
def test_what_cannot_be_enforced_is_refused(
    client: OpenAI, fields: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=MODEL, messages=HELLO, extra_body=fields)
    assert (raised.value.code, raised.value.param) == (code, param)


async def test_a_hostile_grammar_delays_nobody_else(stack: RunningStack) -> None:
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 4}
    numbers = itertools.count(1)

    async def longest_wait() -> float:
        regex = "(a{1000}){1000}" + "b" * next(numbers)  # a second of work, then refused
        hostile = body | {"structured_outputs": {"regex": regex}}
        refused = asyncio.create_task(http.post("/chat/completions", json=hostile))
        slowest = 0.0
        while not refused.done():
            start = time.perf_counter()
            assert (await http.post("/chat/completions", json=body)).status_code == 200
            slowest = max(slowest, time.perf_counter() - start)
        assert refused.result().status_code == 400
        assert slowest > 0
        return slowest

    async with httpx.AsyncClient(base_url=f"{stack.url}/v1", timeout=60) as http:
        await http.post("/chat/completions", json=body | {"structured_outputs": {"regex": "a"}})
        await assert_within_async(1.0, longest_wait)
