"""Requests in the shape in which Codex CLI 0.169 sends them, and what it reads of the answers."""

from typing import Any

from tests.gateway.responses.conftest import BODY, streamed

from rhizome_testing.talking_engine import Say, TalkingEngine

THREAD = "01a1ff88-c6dd-78f1-ac39-85951423636c"


def said(role: str, text: str, number: int) -> dict[str, Any]:
    part = {"type": "output_text" if role == "assistant" else "input_text", "text": text}
    return {"type": "message", "id": f"msg_{THREAD}{number}", "role": role, "content": [part]}


def function(name: str, properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "function",
        "name": name,
        "description": f"About {name}.",
        "strict": False,
        "parameters": {
            "type": "object",
            "properties": properties,
            "required": list(required),
            "additionalProperties": False,
        },
    }


INPUT = [
    said("developer", "You are a coding agent in a terminal.", 1),
    said("developer", "<skills>\nnone\n</skills>", 2),
    said("user", "<environment_context>\n  <cwd>/project</cwd>\n</environment_context>", 3),
    said("user", "Which files are here?", 4),
]
REQUEST = BODY | {
    "instructions": "",
    "input": INPUT,
    "tools": [
        function("exec_command", {"cmd": {"type": "string"}, "tty": {"type": "boolean"}}, "cmd"),
        function("view_image", {"path": {"type": "string"}}, "path"),
        {
            "type": "custom",
            "name": "apply_patch",
            "description": "Edits files.",
            "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin Patch"'},
        },
        {
            "type": "namespace",
            "name": "multi_agent_v1",
            "description": "Tools for sub-agents.",
            "tools": [function("close_agent", {"target": {"type": "string"}}, "target")],
        },
        {"type": "web_search", "external_web_access": True},
        {"type": "local_shell"},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": THREAD,
    "text": {"verbosity": "low"},
    "client_metadata": {"session_id": THREAD},
}
COMMAND = '{"cmd": "ls"}'
CALL = f'<tool_call>{{"name": "exec_command", "arguments": {COMMAND}}}</tool_call>'


def items_read(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items as Codex keeps them: without status, and thinking without its text."""
    kept = []
    for event in events:
        if event["type"] == "response.output_item.done":
            item = {k: v for k, v in event["item"].items() if k != "status"}
            kept.append(item | {"content": None} if item["type"] == "reasoning" else item)
    return kept


async def test_a_turn_with_a_command_and_its_output(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(f"<think>List them.</think>I look.\n{CALL}")]
    events = await streamed(gateway, **REQUEST)
    assert events[0]["type"] == "response.created"
    thinking, message, call = items_read(events)
    assert thinking["encrypted_content"] and thinking["summary"] == []
    assert message["content"][0]["text"] == "I look."
    assert (call["name"], call["arguments"]) == ("exec_command", COMMAND)
    last = events[-1]
    assert last["type"] == "response.completed" and last["response"]["id"]
    assert last["response"]["usage"]["total_tokens"] > 0
    first_prompt = engine.prompts[0]
    assert first_prompt.startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "You are a coding agent in a terminal.\n\n<skills>"
    )
    assert first_prompt.count("<|start_header_id|>user") == 1

    output = {"type": "function_call_output", "id": "fco_1", "call_id": call["call_id"], "output": "a.txt\n"}
    engine.script = lambda prompt: [Say("There is a.txt.")]
    again = await streamed(gateway, **REQUEST | {"input": [*INPUT, thinking, message, call, output]})
    (answer,) = items_read(again)
    assert answer["content"][0]["text"] == "There is a.txt."
    opening = first_prompt.removesuffix("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert engine.prompts[1].startswith(opening), "the prefix stays as it was, and cached"


async def test_deltas_have_what_codex_looks_for(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("<think>Hm</think>Hello")]
    events = await streamed(gateway, **REQUEST)
    thinking = [event for event in events if event["type"] == "response.reasoning_text.delta"]
    assert {event["content_index"] for event in thinking} == {0}
    assert "".join(event["delta"] for event in thinking) == "Hm"
    assert "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta") == "Hello"


async def test_a_patch_comes_as_a_custom_call_and_goes_back(gateway, engine: TalkingEngine) -> None:
    patch = '<tool_call>{"name": "apply_patch", "arguments": {"input": "*** Begin Patch\\n"}}</tool_call>'
    engine.script = lambda prompt: [Say(patch)]
    (call,) = items_read(await streamed(gateway, **REQUEST))
    assert (call["type"], call["input"]) == ("custom_tool_call", "*** Begin Patch\n")
    output = {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "Done."}
    engine.script = lambda prompt: [Say("Patched.")]
    (answer,) = items_read(await streamed(gateway, **REQUEST | {"input": [*INPUT, call, output]}))
    assert answer["content"][0]["text"] == "Patched."
