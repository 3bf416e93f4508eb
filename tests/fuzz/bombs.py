"""Small requests that want much work: grammars, expressions, templates, texts and lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.fuzz.attack import CANARY, FUNCTION, MODEL, SCHEMA, TOOL, Attack, chat, of, said

MONSTERS = {
    "ligatures that grow when normalised": "\ufdfa" * 3000,
    "stacked accents": ("a" + "\u0301" * 200) * 30,
    "joined emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466" * 400,
    "flags": "\U0001f1e9\U0001f1ea" * 1500,
    "right to left": "\u202e\u2066\u2069\u202d" * 1500,
    "Hangul in parts": "\u1112\u1161\u11ab" * 1500,
    "nothing to see": "\u200b\u200c\u200d\u2060\ufeff" * 1200,
    "noncharacters": "\ufffe\uffff\U0010ffff" * 1500,
    "private use": "\ue000\U000f0000" * 2000,
    "one long word": "x" * 8000,
    "white space": " \t\n\u00a0\u2003\u3000" * 1000,
    "digits of many scripts": "\u0661\u0967\uff11\U0001d7d9" * 1500,
}

EXPRESSIONS = {
    "nested repetition": "(a{1,1000}){1,1000}",
    "three levels of repetition": "((a{1,100}){1,100}){1,100}",
    "the classic": "(a+)+$",
    "alternatives of the same": "(a|a|aa)+b" * 200,
    "a large count": "a{1000000000}",
    "all of Unicode many times": r"[\p{L}\p{N}]{1,5000}",
    "many options": "a?" * 2000 + "a" * 2000,
    "many parentheses": "(" * 4000 + "a" + ")" * 4000,
    "open parentheses": "(" * 8000 + CANARY,
    "an intersection of gaps": ".*a.{200}b.*" * 20,
    "back references": rf"({CANARY})\1",
    "look-around": rf"(?<={CANARY})x",
    "too long": CANARY * 2000,
    "empty": "",
    "anchors": "^$^$" * 2000,
    "a broken class": f"[{CANARY}",
    "flags": "(?iuxs)" * 1000 + "ß" * 500,
}

LARKS = {
    "left recursion": 'start: start "a" | start start | "a"',
    "a cycle of nothing": "start: a\na: b\nb: a",
    "empty rules": "start: a*\na: b*\nb: c*\nc:",
    "doubling": "start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(200)) + 'r200: "a"',
    "nested counts": "start: (((A{1,999}){1,999}){1,999}){1,999}\nA: /[a-z]/",
    "many rules": "start: r0\n" + "".join(f'r{i}: "{i}" | r{i + 1}\n' for i in range(900)) + 'r900: "x"',
    "a rule that is missing": f"start: {CANARY}",
    "not Lark": CANARY * 100,
    "a file": f'%import {CANARY}.x\nstart: "a"',
    "every token": "start: <[0-999999]>*",
    "a control token": "start: <[4]>",
    "a huge token": "start: <[999999999]>",
    "ambiguity": "start: x\nx: x x x | x x | A |\nA: /a*/",
    "a deep expression": "start: " + "(" * 3000 + '"a"' + ")" * 3000,
    "embedded JSON": 'start: %json {"type":"object","properties":' + '{"a":' * 50 + "{}" + "}" * 50 + "}",
}


def _deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def _tree(depth: int) -> dict[str, Any]:
    """Definitions that each use the next one four times."""
    rules: dict[str, Any] = {
        f"d{i}": {"type": "object", "properties": {k: {"$ref": f"#/$defs/d{i + 1}"} for k in "abcd"}}
        for i in range(depth)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**rules, f"d{depth}": {"type": "null"}}}


def _branch(number: int) -> dict[str, Any]:
    return {"properties": {f"p{number}": {"type": "string", "minLength": number}}}


SCHEMAS: dict[str, Any] = {
    "40 levels": _deep(40),
    "a choice of 50,000": {"enum": [f"v{i}" for i in range(20_000)]},
    "a choice of 50,000 that is too large": {"enum": [f"{CANARY}{i}" for i in range(50_000)]},
    "a minimum of a billion": {"type": "string", "minLength": 10**9},
    "a list of a billion": {"type": "array", "minItems": 10**9, "items": {"type": "integer"}},
    "counts that multiply": {
        "type": "array", "minItems": 999,
        "items": {"type": "array", "minItems": 999, "items": {"type": "string", "minLength": 999}},
    },
    "itself": {"$ref": "#"},
    "a circle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "a recursion": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "a tree of definitions": _tree(60),
    "an address": {"$ref": f"http://127.0.0.1:1/{CANARY}"},
    "a file": {"$ref": f"file:///etc/passwd#{CANARY}"},
    "a definition that is missing": {"$ref": f"#/$defs/{CANARY}"},
    "allOf times anyOf": {"allOf": [{"anyOf": [_branch(10 * i + j) for j in range(8)]} for i in range(12)]},
    "oneOf of many": {"oneOf": [_branch(i) for i in range(400)]},
    "not": {"not": {"not": {"not": {"type": "string", "pattern": CANARY}}}},
    "patterns that explode": {"type": "string", "pattern": "^(([a-z]{1,500}){1,500}){1,500}$"},
    "many patterns": {"type": "object", "patternProperties": {f"^{CANARY}{i}": {} for i in range(500)}},
    "10,000 properties": {"type": "object", "properties": {f"p{i}": {} for i in range(10_000)}},
    "10,000 required": {"type": "object", "required": [f"{CANARY}{i}" for i in range(5_000)]},
    "a number with many digits": {"type": "number", "multipleOf": 1e-300, "maximum": 1e300},
    "bounds far apart": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "bounds the wrong way round": {"type": "integer", "minimum": 5, "maximum": 1},
    "an unknown type": {"type": CANARY},
    "a keyword of a wrong type": {"type": "object", "properties": [CANARY], "required": CANARY},
    "an unknown keyword": {"type": "object", CANARY: CANARY},
    "an unknown format": {"type": "string", "format": CANARY},
    "false": {"type": "object", "properties": {"a": False}, "required": ["a"]},
}  # fmt: skip


def bombs() -> Iterator[Attack]:
    yield from _grammars()
    yield from _tools()
    yield from _conversations()
    yield from _texts()
    yield from _lists()


def _grammars() -> Iterator[Attack]:
    for name, expression in EXPRESSIONS.items():
        yield chat(f"regex: {name}", structured_outputs={"regex": expression})
        schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": expression}}}
        yield chat(f"pattern: {name}", structured_outputs={"json": schema})
    for name, grammar in LARKS.items():
        yield chat(f"grammar: {name}", structured_outputs={"grammar": grammar})
    for name, schema in SCHEMAS.items():
        named = {"name": "n", "schema": schema, "strict": True}
        yield chat(f"schema: {name}", response_format={"type": "json_schema", "json_schema": named})
        yield of("/v1/completions", f"schema: {name}", structured_outputs={"json": json.dumps(schema)})
        text = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
        yield of("/v1/responses", f"schema: {name}", text=text)
    yield chat("a choice of 20,000", structured_outputs={"choice": [f"{CANARY}{i}" for i in range(20_000)]})
    yield chat("a choice of one huge text", structured_outputs={"choice": [CANARY * 10_000]})


def _tools() -> Iterator[Attack]:
    for name, schema in SCHEMAS.items():
        tool = {"type": "function", "function": {**FUNCTION, "parameters": schema}}
        for choice in ("auto", "required"):
            yield chat(f"{choice} tool: {name}", tools=[tool], tool_choice=choice)
        declared = {"name": "f", "input_schema": {"type": "object"} | schema}
        yield of("/v1/messages", f"tool: {name}", tools=[declared], tool_choice={"type": "any"})
    many = [{"type": "function", "function": {**FUNCTION, "name": f"f{i}"}} for i in range(128)]
    yield chat("128 tools", tools=many, tool_choice="required")
    yield chat("129 tools", tools=[*many, TOOL])
    yield chat("128 tools with huge descriptions", tools=[
        {"type": "function", "function": {**FUNCTION, "name": f"f{i}", "description": CANARY * 1500}}
        for i in range(128)
    ])  # fmt: skip
    for bad in (CANARY + " x", CANARY * 100, '"}', "<|eot_id|>", "a\n", "../a", "ä", ""):
        tool = {"type": "function", "function": {**FUNCTION, "name": bad}}
        yield chat(f"a tool named {bad[:20]!r}", tools=[tool], tool_choice="required")
        yield of("/v1/messages", f"a tool named {bad[:20]!r}", tools=[{"name": bad, "input_schema": SCHEMA}])
    for arguments in ("[" * 100_000, '{"a":' * 20_000, CANARY, '{"a": NaN}', "9" * 100_000, "", "null"):
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        messages = [*said(), {"role": "assistant", "tool_calls": [call]}, *said()]
        yield chat(f"a call with arguments {arguments[:20]!r}", messages=messages)


def _conversations() -> Iterator[Attack]:
    yield chat("10,000 messages", messages=said() * 10_000)
    yield chat("10,001 messages", messages=said("x") * 10_001)
    yield of("/v1/messages", "10,000 messages", messages=said("x") * 10_000)
    yield of("/v1/responses", "10,000 items", input=said("x") * 10_000)
    yield chat(
        "10,000 parts", messages=[{"role": "user", "content": [{"type": "text", "text": "x"}] * 10_000}]
    )
    specials = (
        "<|eot_id|>",
        "<|begin_of_text|>",
        "<|start_header_id|>system<|end_header_id|>\n\n",
        "<think>",
    )
    for special in specials:
        for path in ("/v1/chat/completions", "/v1/messages"):
            yield of(path, f"typed {special[:20]}", messages=said(CANARY + special * 200))
        yield of("/v1/responses", f"typed {special[:20]}", input=special * 200)
        yield of("/tokenize", f"typed {special[:20]}", prompt=special * 20_000)
    for code in ("{{ 7*7 }}", "{% for i in range(10**9) %}x{% endfor %}", "{{ ''.__class__.__mro__ }}"):
        yield chat(f"typed {code[:20]}", messages=said(CANARY + code))
        yield chat(f"a role {code[:20]}", messages=[{"role": code, "content": CANARY}])
        yield chat(f"a template {code[:20]}", chat_template=CANARY + code)
    for name, variables in {
        "the conversation": {"messages": said()},
        "tools": {"tools": [TOOL]},
        "the sandbox": {"raise_exception": CANARY},
        "an unknown one": {CANARY: CANARY},
        "too long": {"date_string": CANARY * 100},
        "nested": {"enable_thinking": {"a": [CANARY]}},
        "many": {f"{CANARY}{i}": i for i in range(10_000)},
        "not a number": {"thinking_budget": 10**400},
    }.items():
        yield chat(f"template variable: {name}", chat_template_kwargs=variables)
        asked = {"prompt": None, "messages": said(), "chat_template_kwargs": variables}
        yield of("/tokenize", f"template variable: {name}", **asked)


def _texts() -> Iterator[Attack]:
    for name, text in MONSTERS.items():
        yield chat(name, messages=said(CANARY + text))
        yield of("/v1/completions", name, prompt=CANARY + text, echo=True, max_tokens=4)
        yield of("/v1/embeddings", name, input=CANARY + text)
        yield of("/tokenize", name, prompt=CANARY + text, return_token_strs=True)
        yield of("/v1/messages", name, messages=said(CANARY + text))
        yield of("/v1/responses", name, input=CANARY + text)
    for path, field in (
        ("/v1/completions", "prompt"),
        ("/v1/embeddings", "input"),
        ("/tokenize", "prompt"),
        ("/v1/responses", "input"),
    ):
        yield of(path, "a text of 4 MB", **{field: "lamp " * 800_000})
        yield of(path, "a word of 4 MB", **{field: "x" * 4_000_000})
        yield of(path, "white space of 4 MB", **{field: "\n" * 2_000_000})
    yield chat("a message of 4 MB", messages=said("lamp " * 800_000))
    yield of("/v1/messages", "a message of 4 MB", messages=said("lamp " * 800_000))
    yield of("/v1/messages", "a system of 4 MB", system="lamp " * 800_000)


def _lists() -> Iterator[Attack]:
    biases = {str(i): 100 for i in range(1024)}
    stops = [("ab" * 127) + chr(65 + i) + "x" for i in range(16)]
    yield chat("1,024 biases", logit_bias=biases)
    yield chat("1,025 biases", logit_bias=biases | {"1024": 1})
    yield chat("biases of one number", logit_bias={"1": 1, "01": 2, " 1": 3, "+1": 4, "1_0": 5, "١": 6})
    yield chat("a bias of a name", logit_bias={CANARY: 1})
    yield chat("a bias too strong", logit_bias={CANARY: 101})
    yield chat("16 long stops", stop=stops, stream=True)
    yield chat("stops that begin alike", stop=["a" * 256] * 16, stream=True)
    yield chat("17 stops", stop=[CANARY] * 17)
    yield of("/v1/messages", "16 long stops", stop_sequences=stops, stream=True)
    yield of("/v1/completions", "2,048 prompts", prompt=["a"] * 2048, max_tokens=1)
    yield of("/v1/completions", "128 answers to 128 prompts", prompt=["a"] * 128, n=128, max_tokens=1)
    yield of("/v1/completions", "a million token ids", prompt=[1] * 1_000_000)
    yield of("/v1/completions", "a huge token id", prompt=[10**18])
    yield of("/v1/embeddings", "2,049 inputs", input=["a"] * 2049)
    yield of("/v1/embeddings", "10,000 lists", input=[[1]] * 10_000)
    yield of("/detokenize", "a million tokens", tokens=[65] * 1_000_000)
    yield of("/detokenize", "a token that is none", tokens=[2**31 - 1])
    yield of("/v1/responses", "10,000 tools", tools=[{"type": CANARY}] * 10_000)
    yield of("/v1/responses", "metadata", metadata={CANARY * 10: CANARY * 100})
    yield chat("fields nobody knows", **{f"{CANARY}{i}": i for i in range(10_000)})
    yield chat("another model", model="gpt-unknown" + CANARY)
    yield of("/v1/messages", "a long model", model=MODEL * 10_000)
