from dataclasses import dataclass

NAMES = ("get_weather", "add", "no_arguments")

NESTED = r'{"a": {"b": [{"c": "}{][\""}, "\\"]}, "u": "Zürich 東京 \ud83d\ude00", "n": -1.5e+3, "t": null}'
SPACED = '{"city":  "Zürich", "days": 1.0,\n "empty": {}}'


@dataclass(frozen=True)
class Written:
    """What a model wrote, and what it means."""

    format: str
    text: str
    shown: str = ""
    calls: tuple[tuple[str, str], ...] = ()


W = Written
CORPUS = [
    # Hermes
    W(
        "hermes",
        f'<tool_call>\n{{"name": "add", "arguments": {NESTED}}}\n</tool_call>',
        "",
        (("add", NESTED),),
    ),
    W(
        "hermes",
        f'Let me look.\n\n<tool_call>\n{{"name": "get_weather", "arguments": {SPACED}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>\n',
        "Let me look.",
        (("get_weather", SPACED), ("add", "{}")),
    ),
    W(
        "hermes",
        '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call> Between. <tool_call>'
        '{"name": "no_arguments"}</tool_call> After.',
        " Between. After.",
        (("add", '{"a": 1}'), ("no_arguments", "{}")),
    ),
    W(
        "hermes",
        '<tool_call>[{"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": {}}]</tool_call>',
        "",
        (("add", '{"a": 1}'), ("add", "{}")),
    ),
    W(
        "hermes",
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n'
        '{"name": "add", "arguments": {"a": 2}}</tool_call>',
        "",
        (("add", '{"a": 1}'), ("add", '{"a": 2}')),
    ),
    W(
        "hermes",
        'Use <tool_call> and </tool_call>, then <tool_call>{"name": "unknown", "arguments": {}}</tool_call>!',
        'Use <tool_call> and </tool_call>, then <tool_call>{"name": "unknown", "arguments": {}}</tool_call>!',
    ),
    W(
        "hermes",
        '<tool_call><tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>',
        "<tool_call>",
        (("add", '{"a": 1}'),),
    ),
    W(  # one brace too many
        "hermes",
        '<tool_call>{"name": "add", "arguments": {"a": 1}}}</tool_call>'
        '<tool_call>{"name": "add"}</tool_call>',
        "}",
        (("add", '{"a": 1}'), ("add", "{}")),
    ),
    # Llama
    W("llama3_json", f'{{"name": "add", "parameters": {NESTED}}}', "", (("add", NESTED),)),
    W(
        "llama3_json",
        f' \n{{"name": "get_weather", "parameters": {SPACED}}}; {{"name": "add", "arguments": {{}}}}\n'
        '{"type": "function", "function": {"name": "add", "parameters": {"a": 2}}};',
        "",
        (("get_weather", SPACED), ("add", "{}"), ("add", '{"a": 2}')),
    ),
    W(
        "llama3_json",
        'Sure. <|python_tag|>{"type": "function", "name": "add", "parameters": {"a": 1}}',
        "Sure.",
        (("add", '{"a": 1}'),),
    ),
    W("llama3_json", '{"function": "add", "parameters": {"a": 1}}', "", (("add", '{"a": 1}'),)),
    W("llama3_json", '{"name": "no_arguments"}', "", (("no_arguments", "{}"),)),
    W(
        "llama3_json",
        '{"name": "add", "parameters": {"a": 1}} and more',
        " and more",
        (("add", '{"a": 1}'),),
    ),
    W(
        "llama3_json",
        '{"name": "add", "parameters": {"a": 1}}; {"title": "x"}',
        '; {"title": "x"}',
        (("add", '{"a": 1}'),),
    ),
    W("llama3_json", 'It is {"name": "add", "parameters": {}}', 'It is {"name": "add", "parameters": {}}'),
    # Pythonic
    W(
        "pythonic",
        "[add(a=1, b=-2.5), get_weather(city=\"Zü'rich\", days=[1, (2,), {'x': None}], ok=True)]",
        "",
        (
            ("add", '{"a": 1, "b": -2.5}'),
            ("get_weather", '{"city": "Zü\'rich", "days": [1, [2], {"x": null}], "ok": true}'),
        ),
    ),
    W(
        "pythonic",
        "\n<|python_start|>[ no_arguments() , ]<|python_end|>\n",
        "",
        (("no_arguments", "{}"),),
    ),
    W(
        "pythonic",
        "[add(a='''it's ''quoted''\n[', b=\"\", c='\\'', d=true, e=1e+5)] Done.",
        "[add(a='''it's ''quoted''\n[', b=\"\", c='\\'', d=true, e=1e+5)] Done.",
    ),
    W(
        "pythonic",
        "[add(a='''it's ''quoted''\n[''', b=\"\", c='\\'', d=true, e=1e+5)] Done.",
        " Done.",
        (("add", '{"a": "it\'s \'\'quoted\'\'\\n[", "b": "", "c": "\'", "d": true, "e": 100000.0}'),),
    ),
    W("pythonic", "[add(a=1), nope(b=2)]", ", nope(b=2)]", (("add", '{"a": 1}'),)),
    W("pythonic", "[see(a=1) for more]", "[see(a=1) for more]"),
    W("pythonic", "[add(1, 2)]", "[add(1, 2)]"),
    W("pythonic", "[add(a=1, a=2)]", "[add(a=1, a=2)]"),
    W("pythonic", "[add(**{'a': 1})]", "[add(**{'a': 1})]"),
    W("pythonic", "[add(a=1e999)]", "[add(a=1e999)]"),
    W("pythonic", "[add(a=__import__('os'))]", "[add(a=__import__('os'))]"),
    W("pythonic", "[1, 2]", "[1, 2]"),
    W("pythonic", "[]", "[]"),
    # Mistral
    W(
        "mistral",
        f'[TOOL_CALLS] [{{"name": "add", "arguments": {NESTED}}}, '
        f'{{"name": "get_weather", "arguments": {SPACED}, "id": "a1B2c3D4e"}}]',
        "",
        (("add", NESTED), ("get_weather", SPACED)),
    ),
    W(
        "mistral",
        f"One moment.\n[TOOL_CALLS]add{NESTED}[TOOL_CALLS]get_weather[ARGS]{SPACED}"
        '[TOOL_CALLS]add[CALL_ID]ab12CD34e[ARGS]{"a": 1}',
        "One moment.",
        (("add", NESTED), ("get_weather", SPACED), ("add", '{"a": 1}')),
    ),
    W("mistral", '[TOOL_CALLS]unknown{"a": 1}', '[TOOL_CALLS]unknown{"a": 1}'),
    W("mistral", "[TOOL_CALLS][]", "[TOOL_CALLS][]"),
    W("mistral", "[TOOL_CALLS]add[ARGUMENTS]{}", "[TOOL_CALLS]add[ARGUMENTS]{}"),
]
