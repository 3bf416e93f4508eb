"""Requests in the shape in which agents send them."""

from typing import Any

from pydantic import BaseModel
from tests.gateway.anthropic.conftest import BODY, CALL, WEATHER, anthropic_gateway
from tests.gateway.anthropic.test_stream import parsed, well_formed

from rhizome_testing.talking_engine import Say, TalkingEngine

EPHEMERAL = {"cache_control": {"type": "ephemeral"}}


def _body(nonce: str) -> dict[str, Any]:
    """What Claude Code sends in the midst of a task."""
    return {
        "model": "claude-opus-9-20260801",
        "max_tokens": 64_000,
        "stream": True,
        "system": [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.220; cch={nonce};"},
            {"type": "text", "text": "You are an agent.", **EPHEMERAL},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "<system-reminder>…</system-reminder>"}]},
            {"role": "user", "content": [{"type": "text", "text": "go on", **EPHEMERAL}]},
            {"role": "system", "content": "MCP servers have instructions."},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": ""},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Bern"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_1",
                        "content": [{"type": "text", "text": "rain"}],
                        "is_error": False,
                        **EPHEMERAL,
                    }
                ],
            },
        ],
        "tools": [
            WEATHER | {"eager_input_streaming": True},
            WEATHER | {"name": "mcp__" + "long_" * 20 + "name"},
        ],
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "user_1_account__session_2"},
    }


async def test_what_claude_code_sends_is_answered_and_cached(engine: TalkingEngine) -> None:
    engine.max_context_tokens = 4096
    engine.script = lambda prompt: [Say(f"<think>Rain.</think>\n\nOnce more.\n{CALL}")]
    async with anthropic_gateway(engine, model_alias=("*",)) as gateway:
        for nonce in ("71fea", "0aaa9"):
            answer = await gateway.http.post(
                "/v1/messages?beta=true",
                json=_body(nonce),
                headers={"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219"},
            )
            assert answer.status_code == 200, answer.text
            assert "x-ignored-params" not in answer.headers
            well_formed(parsed(answer.text))
        counted = await gateway.http.post("/v1/messages/count_tokens?beta=true", json=_body("1"))
    first, second = engine.submits
    assert first.request.token_ids == second.request.token_ids
    assert counted.json() == {"input_tokens": len(first.request.token_ids.ids)}


class Point(BaseModel):
    x: int
    y: int


async def test_the_parse_helper_gets_an_object(client, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say('{"x": 1, "y": 2}')]
    message = await client.messages.parse(**BODY, output_format=Point)
    assert message.parsed_output == Point(x=1, y=2)
    assert engine.submits[0].request.HasField("grammar")


async def test_the_older_name_of_the_format_binds_too(gateway, engine: TalkingEngine) -> None:
    answer = {"type": "json_schema", "schema": Point.model_json_schema()}
    sent = await gateway.http.post("/v1/messages", json=BODY | {"output_format": answer})
    assert sent.status_code == 200, sent.text
    assert engine.submits[0].request.HasField("grammar")


async def test_a_forced_call_binds_the_answer(client, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(CALL)]
    message = await client.messages.create(**BODY, tools=[WEATHER], tool_choice={"type": "any"})
    assert message.stop_reason == "tool_use"
    assert engine.submits[0].request.HasField("grammar")
