"""Conversations of every shape that templates meet, and tools."""

from typing import Any

Messages = list[dict[str, Any]]


def call(name: str, arguments: dict[str, Any], call_id: str = "call_12345") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'Weather of a place, e.g. "Köln" <now> & later',
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "a town\nor a region"},
                    "unit": {"type": "string", "enum": ["C", "F"]},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["place"],
            },
        },
    },
    {"type": "function", "function": {"name": "stop", "description": "End.", "parameters": {}}},
]

USER: Messages = [{"role": "user", "content": "Hello there!"}]
CONVERSATIONS: dict[str, Messages] = {
    "one": USER,
    "turns": [*USER, {"role": "assistant", "content": " Hi. \n"}, {"role": "user", "content": "  And?  "}],
    "system": [{"role": "system", "content": "Be  brief. /no_think"}, *USER],
    "developer": [{"role": "developer", "content": "Be brief."}, *USER],
    "two systems": [{"role": "system", "content": "A"}, *USER, {"role": "system", "content": "B"}, *USER],
    "tool": [
        *USER,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [call("get_weather", {"place": "Köln", "n": 1.5})],
        },
        {"role": "tool", "tool_call_id": "call_12345", "name": "get_weather", "content": '{"t": 3}'},
        {"role": "assistant", "content": "3 degrees."},
        {"role": "user", "content": "Thanks"},
    ],
    "parallel calls": [
        {"role": "system", "content": "s"},
        *USER,
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                call("get_weather", {"place": "東京", "days": [1, 2]}),
                call("stop", {}, "call_b2"),
            ],
        },
        {"role": "tool", "tool_call_id": "call_12345", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_b2", "content": ""},
    ],
    "unicode": [
        {"role": "user", "content": "Zażółć 你好 👩‍👩‍👧 \u202e\u0000\u00a0 <b>&amp;</b> {{ x }} {% if %}"}
    ],
    "empty": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}, *USER],
    "name": [{"role": "user", "name": "Ann", "content": "I am Ann"}],
    "no content": [
        *USER,
        {"role": "assistant", "tool_calls": [call("stop", {})]},
        {"role": "tool", "content": "x"},
    ],
    "reasoning": [
        *USER,
        {
            "thinking": "Hmm,\nlet me think.",
            "role": "assistant",
            "content": "42",
            "reasoning_content": "Hmm,\nlet me think.",
        },
        {"role": "user", "content": "Why?"},
    ],
    "thought aloud": [*USER, {"role": "assistant", "content": "<think>\nx\n</think>\n\ny"}, *USER],
    "ends with the assistant": [*USER, {"role": "assistant", "content": "The answer is "}],
}
