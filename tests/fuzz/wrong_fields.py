"""Usual requests with one field replaced by each of some nasty values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.fuzz.attack import CANARY, MODEL, REQUESTS, SCHEMA, TOOL, Attack, said, with_raw


def _text(text: str) -> bytes:
    return json.dumps(f"{CANARY}{text}").encode()


def _nested(depth: int, opening: bytes, inside: bytes, closing: bytes) -> bytes:
    return opening * depth + inside + closing * depth


QUOTED = json.dumps(CANARY).encode()

NASTY: Mapping[str, bytes] = {
    "null": b"null",
    "true": b"true",
    "zero": b"0",
    "minus zero": b"-0",
    "minus zero as a fraction": b"-0.0",
    "minus one": b"-1",
    "a fraction": b"1.5",
    "a hair above one": b"1.0000000000000002",
    "the smallest number": b"5e-324",
    "the largest number": b"1.7976931348623157e308",
    "beyond numbers": b"1e400",
    "2^31": b"2147483648",
    "2^53 + 1": b"9007199254740993",
    "2^63": b"9223372036854775808",
    "-2^63 - 1": b"-9223372036854775809",
    "2^64": b"18446744073709551616",
    "400 digits": b"1" * 400,
    "100,000 digits": b"7" * 100_000,
    "NaN": b"NaN",
    "infinity": b"Infinity",
    "minus infinity": b"-Infinity",
    "an empty text": b'""',
    "a text": QUOTED,
    "a number as text": b'"1"',
    "a zero character": _text("\0"),
    "control characters": _text("".join(map(chr, range(32)))),
    "half a surrogate pair": b'"' + CANARY.encode() + b'\\ud800"',
    "surrogates the wrong way round": b'"\\udc00\\ud800' + CANARY.encode() + b'"',
    "broken UTF-8": b'"' + CANARY.encode() + b'\xc3\x28\xff"',
    "overlong UTF-8": b'"' + CANARY.encode() + b'\xc0\xaf"',
    "a text of 64 KiB": _text("x" * 65536),
    "format characters": _text("{} {0} %s %n ${jndi:ldap://x} {{7*7}} {%raw%} </script>"),
    "an empty list": b"[]",
    "a list in a list": b"[[" + QUOTED + b"]]",
    "a list of nulls": b"[null,null]",
    "a list of texts": b"[" + QUOTED + b"," + QUOTED + b"]",
    "10,000 numbers": b"[" + b",".join([b"1"] * 10_000) + b"]",
    "10,000 texts": b"[" + b",".join([QUOTED] * 10_000) + b"]",
    "an empty object": b"{}",
    "an object": b"{" + QUOTED + b":" + QUOTED + b"}",
    "a list of objects": b"[{" + QUOTED + b":" + QUOTED + b"}]",
    "names of Python's": b'{"__class__":' + QUOTED + b',"__proto__":{"a":1},"model_config":1,"self":2}',
    "a key twice": b"{" + QUOTED + b":1," + QUOTED + b":2}",
    "1,000 keys": b"{" + b",".join(b'"%s%d":1' % (CANARY.encode(), i) for i in range(1000)) + b"}",
    "numbers as keys": b'{"1":1e308,"-1":2,"99999999999999999999":3}',
    "120 lists deep": _nested(120, b"[", QUOTED, b"]"),
    "120 objects deep": _nested(120, b'{"a":', QUOTED, b"}"),
    "140 lists deep": _nested(140, b"[", QUOTED, b"]"),
}

_CALL = {"id": CANARY, "type": "function", "function": {"name": "f", "arguments": "{}"}}
_CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": CANARY}], "name": CANARY},
        {"role": "assistant", "content": None, "tool_calls": [_CALL], "reasoning_content": CANARY},
        {"role": "tool", "content": CANARY, "tool_call_id": CANARY},
        *said(),
    ],
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "look_up"}},
    "logit_bias": {"1": 1},
    "stop": [CANARY],
    "stop_token_ids": [1],
    "stream": True,
    "stream_options": {"include_usage": True},
    "chat_template_kwargs": {"enable_thinking": True},
}
_FORMATTED: dict[str, Any] = REQUESTS["/v1/chat/completions"] | {
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
}
_BOUND: dict[str, Any] = REQUESTS["/v1/chat/completions"] | {"structured_outputs": {"choice": [CANARY]}}
_MESSAGES: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 16,
    "system": [{"type": "text", "text": CANARY, "cache_control": {"type": "ephemeral"}}],
    "messages": [
        *said(),
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": CANARY}]},
    ],
    "tools": [{"name": "f", "description": CANARY, "input_schema": SCHEMA}],
    "tool_choice": {"type": "tool", "name": "f"},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "metadata": {"user_id": CANARY},
}
_ITEMS: dict[str, Any] = {
    "model": MODEL,
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": CANARY}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": CANARY},
    ],
    "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}],
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
    "reasoning": {"effort": "low"},
    "metadata": {CANARY: CANARY},
}
_PARTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", _CHAT),
    ("/v1/chat/completions", _FORMATTED),
    ("/v1/chat/completions", _BOUND),
    ("/v1/messages", _MESSAGES),
    ("/v1/responses", _ITEMS),
)


def wrong_fields(document: Mapping[str, Any]) -> Iterator[Attack]:
    """Every field of every route, with every value.

    Args:
        document: the gateway's OpenAPI document, which names the fields.
    """
    schemas = document["components"]["schemas"]
    for path, request in REQUESTS.items():
        media = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        name = media["schema"]["$ref"].rpartition("/")[2]
        for field in (*schemas[name]["properties"], "no_such_field"):
            yield from _with_each_value(path, request, (field,))
    for path, request in _PARTS:
        for place in _places(request):
            yield from _with_each_value(path, request, place)


def _with_each_value(path: str, request: Any, place: tuple[str | int, ...]) -> Iterator[Attack]:
    for kind, raw in NASTY.items():
        name = f"{path}: {'.'.join(map(str, place))} is {kind}"
        yield Attack(name, path, with_raw(request, place, raw))


def _places(value: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where something stands below the fields of a request."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for step, inner in inside:
        if above:
            yield (*above, step)
        if isinstance(inner, dict | list):
            yield from _places(inner, (*above, step))
