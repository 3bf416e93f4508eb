import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.gateway.conftest import RunningGateway
from tests.gateway.responses.conftest import BODY, CALL, WEATHER, responses_gateway, streamed, whole

from rhizome.engine.v1.generate_pb2 import FinishReason
from rhizome_testing.talking_engine import Finish, Say, TalkingEngine

PATCH: dict[str, Any] = {"type": "custom", "name": "apply_patch", "description": "Edits files"}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}
GIT: dict[str, Any] = {
    "type": "namespace",
    "name": "mcp__git__",
    "description": "Git",
    "tools": [
        {"type": "function", "name": "log", "strict": False, "parameters": {"type": "object"}},
        {"type": "web_search"},
    ],
}


def called(name: str, arguments: str) -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


@pytest.fixture
async def gateway(engine: TalkingEngine) -> AsyncIterator[RunningGateway]:
    """One whose prompts are JSON."""
    config = json.loads(engine.files["tokenizer_config.json"])
    config["chat_template"] = "{{ {'tools': tools, 'messages': messages} | tojson }}"
    engine.files["tokenizer_config.json"] = json.dumps(config).encode()
    async with responses_gateway(engine) as gateway:
        yield gateway


def shown(engine: TalkingEngine) -> dict[str, Any]:
    functions: list[dict[str, Any]] = json.loads(engine.prompts[-1])["tools"] or []
    return {tool["function"]["name"]: tool["function"] for tool in functions}


async def test_functions_are_shown_as_the_chat_api_shows_them(gateway, engine: TalkingEngine) -> None:
    await whole(gateway, tools=[WEATHER])
    assert shown(engine) == {"get_weather": {k: v for k, v in WEATHER.items() if k != "type"}}


async def test_a_custom_tool_gets_its_input_as_it_is(gateway, engine: TalkingEngine) -> None:
    text = 'say "hi"\n\u00fc'
    engine.script = lambda prompt: [Say(called("apply_patch", json.dumps({"input": text})))]
    response = await whole(gateway, tools=[PATCH | {"format": GRAMMAR}])
    (call,) = response["output"]
    assert call["id"].startswith("ctc_") and call["call_id"].startswith("call_")
    assert (call["type"], call["name"], call["input"]) == ("custom_tool_call", "apply_patch", text)
    function = shown(engine)["apply_patch"]
    assert function["description"].startswith("Edits files") and 'start: "x"' in function["description"]
    assert function["parameters"]["required"] == ["input"]
    events = await streamed(gateway, tools=[PATCH])
    assert [(e["type"].removeprefix("response."), e.get("delta", e.get("input"))) for e in events[3:5]] == [
        ("custom_tool_call_input.delta", text),
        ("custom_tool_call_input.done", text),
    ]
    assert events[-1]["response"]["output"][0]["input"] == text


async def test_a_custom_input_that_was_cut_off_is_given_as_far_as_it_goes(
    gateway, engine: TalkingEngine
) -> None:
    cut = called("apply_patch", '{"input": "*** Begin\\nfoo').removesuffix("}</tool_call>")
    engine.script = lambda prompt: [Say(cut), Finish(FinishReason.FINISH_REASON_LENGTH)]
    (call,) = (await whole(gateway, tools=[PATCH]))["output"]
    assert call["status"] == "incomplete"
    assert "*** Begin\nfoo".startswith(call["input"]) and call["input"]


async def test_tools_of_a_namespace_are_called_in_it(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(called("mcp__git__log", "{}"))]
    response = await whole(gateway, tools=[GIT, WEATHER])
    assert list(shown(engine)) == ["mcp__git__log", "get_weather"]
    (call,) = response["output"]
    assert (call["name"], call["namespace"]) == ("log", "mcp__git__")
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "abc"}
    await whole(gateway, tools=[GIT], input=[{"role": "user", "content": "?"}, call, result])
    messages = json.loads(engine.prompts[-1])["messages"]
    assert messages[1]["tool_calls"][0]["function"]["name"] == "mcp__git__log"
    assert messages[2]["content"] == "abc"


async def test_tools_that_openai_would_run_are_left_out_and_named(gateway, engine: TalkingEngine) -> None:
    tools = [{"type": "web_search", "name": 5}, WEATHER, {"type": "local_shell"}, GIT]
    answer = await gateway.http.post("/v1/responses", json=BODY | {"tools": tools, "odd": 1})
    assert answer.headers["x-ignored-params"] == "odd, tools.web_search, tools.local_shell"
    assert list(shown(engine)) == ["get_weather", "mcp__git__log"]
    listed = answer.json()["tools"]
    assert [tool["type"] for tool in listed] == ["function", "namespace"]
    assert [tool["name"] for tool in listed[1]["tools"]] == ["log"]


async def test_where_nothing_is_ignored_such_tools_are_refused(engine: TalkingEngine) -> None:
    async with responses_gateway(engine, strict_params=True) as gateway:
        body = BODY | {"tools": [{"type": "web_search"}]}
        answer = await gateway.http.post("/v1/responses", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
        everything = {"include": [], "store": False, "prompt_cache_key": "k", "client_metadata": {}}
        assert (await gateway.http.post("/v1/responses", json=BODY | everything)).status_code == 200


async def test_only_tools_that_cannot_be_used_are_no_tools(gateway, engine: TalkingEngine) -> None:
    await whole(gateway, tools=[{"type": "web_search"}], tool_choice="auto", parallel_tool_calls=False)
    assert shown(engine) == {}


async def test_a_named_tool_must_be_called(gateway, engine: TalkingEngine) -> None:
    named = {"type": "function", "name": "get_weather"}
    response = await whole(gateway, tools=[WEATHER, PATCH], tool_choice=named)
    assert response["tool_choice"] == named
    grammar = str(engine.submits[-1].request.grammar)
    assert "get_weather" in grammar and "apply_patch" not in grammar
    await whole(gateway, tools=[WEATHER, PATCH], tool_choice={"type": "custom", "name": "apply_patch"})
    assert "apply_patch" in str(engine.submits[-1].request.grammar)


async def test_allowed_tools_are_callable_and_all_are_shown(gateway, engine: TalkingEngine) -> None:
    allowed = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "custom", "name": "apply_patch"}],
    }
    engine.script = lambda prompt: [Say(CALL)]
    response = await whole(gateway, tools=[WEATHER, PATCH], tool_choice=allowed)
    assert list(shown(engine)) == ["get_weather", "apply_patch"]
    assert "get_weather" not in str(engine.submits[-1].request.grammar)
    assert [item["type"] for item in response["output"]] == ["message"]


async def test_no_tool_is_callable_where_none_is_chosen(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(CALL)]
    response = await whole(gateway, tools=[WEATHER], tool_choice="none")
    assert [item["type"] for item in response["output"]] == ["message"]
    assert shown(engine) == {}


async def test_one_call_at_most_where_asked_for(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(CALL + CALL)]
    response = await whole(gateway, tools=[WEATHER], parallel_tool_calls=False)
    assert len(response["output"]) == 1 and response["parallel_tool_calls"] is False


async def test_thinking_that_a_client_carries_reaches_the_template(engine: TalkingEngine) -> None:
    config = json.loads(engine.files["tokenizer_config.json"])
    config["chat_template"] = "{% for m in messages %}[{{ m.reasoning_content }}|{{ m.content }}]{% endfor %}"
    engine.files["tokenizer_config.json"] = json.dumps(config).encode()
    engine.script = lambda prompt: [Say("<think>It is 7.</think>Seven")]
    async with responses_gateway(engine) as gateway:
        first = await whole(gateway, include=["reasoning.encrypted_content"])
        del first["output"][0]["content"]  # as Codex does
        await whole(gateway, input=[*first["output"], {"role": "user", "content": "Sure?"}])
    assert engine.prompts[-1].startswith("[It is 7.|Seven]")
