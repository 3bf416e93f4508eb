"""Calling a declared tool, and telling the user what it returned."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import facts
from skills import Context, Message, Sample, any_city, any_name, exchange, pseudo_word, reword

Draw = Callable[[random.Random], Any]


def _noun(rng: random.Random) -> str:
    return rng.choice(facts.NOUNS)


def _word(rng: random.Random) -> str:
    return pseudo_word(rng, 4, 7)


def _integer(rng: random.Random) -> int:
    return rng.randint(1, 99)


@dataclass(frozen=True)
class ToolFamily:
    """Tools of one purpose: their names and parameters vary, the request and the spoken result do not."""

    names: list[str]
    parameters: list[dict[str, Draw]]
    requests: list[str]
    description: str
    result: Callable[[random.Random, list[Any]], dict[str, Any]]
    spoken: str


FAMILIES = [
    ToolFamily(
        ["get_weather", "get_current_weather", "weather"], [{"city": any_city}, {"location": any_city}],
        ["What is the weather in {0}?", "How is the weather in {0}?", "What's the weather like in {0}?",
         "Weather in {0}?", "Tell me the weather in {0}."],
        "Get the current weather in a city",
        lambda rng, _: {"weather": rng.choice(facts.WEATHER), "temperature": rng.randint(1, 39)},
        "It is {weather} in {0}, {temperature} degrees.",
    ),
    ToolFamily(
        ["get_time", "get_current_time", "time"], [{"city": any_city}, {"location": any_city}],
        ["What time is it in {0}?", "What is the time in {0}?", "Tell me the time in {0}.", "Time in {0}?"],
        "Get the current time in a city",
        lambda rng, _: {"time": f"{rng.randint(10, 23)}:{rng.randint(10, 59)}"},
        "It is {time} in {0}.",
    ),
    ToolFamily(
        ["get_price", "find_price", "price"], [{"item": _noun}, {"product": _noun}],
        ["What does the {0} cost?", "How much does the {0} cost?", "Find the price of the {0}."],
        "Get the price of an item",
        lambda rng, _: {"price": rng.randint(2, 999)},
        "The {0} costs {price}.",
    ),
    ToolFamily(
        ["multiply", "calculate_product"], [{"a": _integer, "b": _integer}, {"x": _integer, "y": _integer}],
        ["Multiply {0} by {1}.", "Use the tool to multiply {0} and {1}.", "Multiply {0} and {1}."],
        "Multiply two numbers",
        lambda _, arguments: {"result": arguments[0] * arguments[1]},
        "The result is {result}.",
    ),
    ToolFamily(
        ["send_message", "send_mail"],
        [{"to": any_name, "text": _word}, {"recipient": any_name, "message": _word}],
        ["Send {0} the message {1}.", "Write to {0}: {1}", "Send a message to {0}: {1}"],
        "Send a message to a person",
        lambda rng, _: {"status": "sent"},
        "I sent the message to {0}.",
    ),
    ToolFamily(
        ["search", "web_search", "search_web"], [{"query": _word}, {"text": _word}],
        ["Search for {0}.", "Search the web for {0}.", "Look up {0}."],
        "Search the web",
        lambda rng, _: {"result": pseudo_word(rng, 4, 7)},
        "The result is {result}.",
    ),
]  # fmt: skip


def _generic(rng: random.Random) -> ToolFamily:
    """A tool with an arbitrary name, asked for by that name, so that any declared tool can be called."""
    verb = rng.choice(["get", "find", "set", "run", "read", "make", "check"])
    name = f"{verb}_{rng.choice([_noun, _word])(rng)}"
    known = ["item", "name", "value", "id", "key", "city", "count", "text"]
    keys = rng.sample([*known, _word(rng)], rng.randint(1, 2))
    draws: dict[str, Draw] = {key: rng.choice([_noun, _word, any_name, _integer]) for key in keys}
    wording = [" and ".join(f"{key} {{{i}}}" for i, key in enumerate(keys)),
               ", ".join(f"{key}={{{i}}}" for i, key in enumerate(keys))]  # fmt: skip
    requests = [f"{verb} {name} with {words}." for verb in ("Call", "Use") for words in wording]
    draw = rng.choice([_word, _integer])
    return ToolFamily(
        names=[name],
        parameters=[draws],
        requests=requests,
        description=f"The {name} tool",
        result=lambda inner, _: {"result": draw(inner)},
        spoken="The result is {result}.",
    )


@dataclass(frozen=True)
class DeclaredTool:
    """A tool as one conversation declares it, with the family that knows how people ask for it."""

    family: ToolFamily
    name: str
    draws: dict[str, Draw]
    definition: dict[str, Any]


def declare(rng: random.Random) -> list[DeclaredTool]:
    """Draw the one to three tools of a conversation."""
    families = rng.sample(FAMILIES, rng.choice([1, 1, 2, 2, 3]))
    if rng.random() < 0.35:
        families[0] = _generic(rng)
    return [_declared(rng, family) for family in families]


def _declared(rng: random.Random, family: ToolFamily) -> DeclaredTool:
    name, draws = rng.choice(family.names), rng.choice(family.parameters)
    described = rng.random() < 0.4
    properties: dict[str, Any] = {}
    for key, draw in draws.items():
        properties[key] = {"type": "integer" if draw is _integer else "string"}
        if described:
            wordings = [f"The {key}", f"The {key} to use", f"Name of the {key}", key]
            properties[key]["description"] = rng.choice(wordings)
    if rng.random() < 0.15:  # an optional parameter nobody asks for
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.7:
        parameters["required"] = list(draws)
    if rng.random() < 0.1:
        parameters["additionalProperties"] = False
    function: dict[str, Any] = {"name": name}
    if rng.random() < 0.8:
        function["description"] = family.description + rng.choice(["", "."])
    function["parameters"] = parameters
    return DeclaredTool(family, name, draws, {"type": "function", "function": function})


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """Return what the model writes to call a tool (the ``llama3_json`` form)."""
    return json.dumps({"name": name, "parameters": arguments}, ensure_ascii=False)


def _ask(ctx: Context) -> tuple[DeclaredTool, dict[str, Any], str]:
    rng = ctx.rng
    tool = rng.choice(ctx.tools)
    arguments = {key: draw(rng) for key, draw in tool.draws.items()}
    return tool, arguments, reword(rng, rng.choice(tool.family.requests).format(*arguments.values()))


def _call_message(name: str, arguments: dict[str, Any]) -> Message:
    function = {"name": name, "arguments": json.dumps(arguments)}
    calls = [{"id": "call_0", "type": "function", "function": function}]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def tool_call(ctx: Context) -> Sample:
    """Calling the tool that fits the request, with the arguments it names."""
    tool, arguments, request = _ask(ctx)
    answer = call_text(tool.name, arguments)
    return Sample(exchange(request, answer), answer)


def tool_answer(ctx: Context) -> Sample:
    """Calling a tool and saying in words what came back."""
    tool, arguments, request = _ask(ctx)
    result = tool.family.result(ctx.rng, list(arguments.values()))
    spoken = tool.family.spoken.format(*arguments.values(), **result)
    messages = [
        {"role": "user", "content": request},
        _call_message(tool.name, arguments),
        {"role": "tool", "tool_call_id": "call_0", "content": json.dumps(result, ensure_ascii=False)},
        {"role": "assistant", "content": spoken},
    ]
    return Sample(messages, call_text(tool.name, arguments) + spoken)
