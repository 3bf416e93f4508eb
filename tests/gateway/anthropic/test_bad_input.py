from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
import pytest_asyncio
from anthropic.types.shared import ErrorResponse
from tests.gateway.anthropic.conftest import BODY, WEATHER, anthropic_gateway, async_client, strictly
from tests.gateway.conftest import RunningGateway

from rhizome_testing.talking_engine import TalkingEngine

# One gateway for the whole table: each test also shows that it survived the one before.
pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "xyzzy"


def said(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


def tool(**fields: Any) -> dict[str, Any]:
    return {"tools": [WEATHER | fields]}


# name: (fields that replace those of a good request, what the message says)
FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "model"),
    "an empty model": ({"model": ""}, "model"),
    "no max_tokens": ({"max_tokens": None}, "max_tokens"),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens"),
    "max_tokens a string": ({"max_tokens": "5"}, "max_tokens"),
    "max_tokens huge": ({"max_tokens": 10**12}, "max_tokens"),
    "no messages": ({"messages": []}, "messages"),
    "messages a string": ({"messages": "Hi"}, "messages"),
    "a message that is a string": ({"messages": ["Hi"]}, "messages[0]"),
    "an unknown role": (said(role=SECRET), "messages[0].role"),
    "content a number": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "no blocks": (said(), "content"),
    "a block that is a string": (said("Hi"), "object"),
    "a block without a type": (said({"text": "Hi"}), "type"),
    "a block of an unknown type": (said({"type": SECRET}), "type"),
    "a block without text": (said({"type": "text"}), "messages[0].content[0].text.text"),
    "text a number": (said({"type": "text", "text": 5}), "messages[0].content[0].text.text"),
    "an image": (said({"type": "image", "source": {"type": "url", "url": "http://x"}}), "'image'"),
    "a document": (said({"type": "document", "source": {"type": "text", "data": "x"}}), "'document'"),
    "an image as a result": (
        said({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]}), "'image'",
    ),
    "a call of the user": (said({"type": "tool_use", "id": "t", "name": "f", "input": {}}), "role"),
    "thinking of the user": (said({"type": "thinking", "thinking": "x", "signature": ""}), "role"),
    "a result of the assistant": (
        said({"type": "tool_result", "tool_use_id": "t"}, role="assistant"), "role",
    ),
    "a call without an id": (
        said({"type": "tool_use", "name": "f", "input": {}}, role="assistant"), "messages[0].content[0]",
    ),
    "input that is a string": (
        said({"type": "tool_use", "id": "t", "name": "f", "input": SECRET}, role="assistant"), "input",
    ),
    "a result without a call": (said({"type": "tool_result", "tool_use_id": SECRET}), "tool_use"),
    "system a number": ({"system": 5}, "system"),
    "system an image": ({"system": [{"type": "image"}]}, "'image'"),
    "temperature too high": ({"temperature": 1.1}, "temperature"),
    "temperature negative": ({"temperature": -0.1}, "temperature"),
    "top_p 0": ({"top_p": 0}, "top_p"),
    "top_k negative": ({"top_k": -1}, "top_k"),
    "stream a string": ({"stream": "yes"}, "stream"),
    "an empty stop": ({"stop_sequences": [""]}, "stop_sequences[0]"),
    "a stop of a wrong type": ({"stop_sequences": "x"}, "stop_sequences"),
    "too many stops": ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
    "a long stop": ({"stop_sequences": ["x" * 257]}, "stop_sequences[0]"),
    "a tool without a name": ({"tools": [{"input_schema": {"type": "object"}}]}, "tools[0].name"),
    "a bad tool name": (tool(name="a b"), "tools[0].name"),
    "a tool without a schema": (tool(input_schema=None), "tools[0].input_schema"),
    "a schema of another type": (tool(input_schema={"type": "string"}), "input_schema"),
    "two tools of a name": ({"tools": [WEATHER, WEATHER]}, "different names"),
    "a web search": ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "'web_search'"),
    "a computer": ({"tools": [{"type": "computer_20250124", "name": "computer"}]}, "'computer'"),
    "a shell": ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "'bash'"),
    "an unknown tool": ({"tools": [{"type": SECRET, "name": "x"}]}, "input_schema"),
    "a forced tool without tools": ({"tool_choice": {"type": "any"}}, "tool_choice"),
    "a forced tool that is none of them": (
        {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": SECRET}}, "tool_choice",
    ),
    "a forced tool without a name": ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice"),
    "an unknown choice": ({"tools": [WEATHER], "tool_choice": {"type": SECRET}}, "tool_choice.type"),
    "a choice that is a string": ({"tools": [WEATHER], "tool_choice": "auto"}, "tool_choice"),
    "thinking without a budget": ({"thinking": {"type": "enabled"}}, "budget_tokens"),
    "a small budget": ({"thinking": {"type": "enabled", "budget_tokens": 10}}, "thinking.budget_tokens"),
    "unknown thinking": ({"thinking": {"type": SECRET}}, "thinking.type"),
    "an unknown effort": ({"output_config": {"effort": SECRET}}, "output_config.effort"),
    "an unknown format": ({"output_config": {"format": {"type": SECRET}}}, "output_config.format.type"),
    "a schema that cannot be enforced": (
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": SECRET}}}}, "schema",
    ),
    "MCP servers": ({"mcp_servers": [{"type": "url", "url": "http://x", "name": "x"}]}, "mcp_servers"),
    "a container": ({"container": {"skills": [{"type": "anthropic", "skill_id": "pdf"}]}}, "container"),
    "an unknown tier": ({"service_tier": SECRET}, "service_tier"),
    "metadata a string": ({"metadata": SECRET}, "metadata"),
    "too long": (said({"type": "text", "text": "x" * 600}), "prompt is too long"),
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_engine() -> AsyncIterator[TalkingEngine]:
    async with TalkingEngine() as engine:
        yield engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(shared_engine: TalkingEngine) -> AsyncIterator[RunningGateway]:
    async with anthropic_gateway(shared_engine) as gateway:
        yield gateway


def envelope(body: bytes, kind: str) -> str:
    error = strictly(ErrorResponse, ErrorResponse.model_validate_json(body).to_dict())
    assert error.error.type == kind and error.request_id
    assert len(body) < 2600 and SECRET.encode() not in body
    return str(error.error.message)


@pytest.mark.parametrize("name", FIELDS)
async def test_bad_fields_are_named(shared, shared_engine: TalkingEngine, name: str) -> None:
    fields, says = FIELDS[name]
    before = len(shared_engine.submits)
    answer = await shared.http.post("/v1/messages", json=BODY | fields)
    assert answer.status_code == 400, answer.text
    assert says in envelope(answer.content, "invalid_request_error")
    assert len(shared_engine.submits) == before


@pytest.mark.parametrize("name", ["no model", "no messages", "an image", "a web search", "too long"])
async def test_counting_refuses_the_same(shared, name: str) -> None:
    fields, says = FIELDS[name]
    answer = await shared.http.post("/v1/messages/count_tokens", json=BODY | fields)
    assert answer.status_code == 400
    assert says in envelope(answer.content, "invalid_request_error")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_all_errors_have_the_envelope(shared, path: str) -> None:
    broken = await shared.http.post(path, content=b'{"model": ', headers={"content-type": "application/json"})
    assert broken.status_code == 400 and "JSON" in envelope(broken.content, "invalid_request_error")
    unknown = await shared.http.post(path, json=BODY | {"model": SECRET})
    assert unknown.status_code == 404 and envelope(unknown.content, "not_found_error")
    plain = await shared.http.post(path, content=b"{}", headers={"content-type": "text/plain"})
    assert plain.status_code == 415 and envelope(plain.content, "invalid_request_error")
    method = await shared.http.get(path)
    assert method.status_code == 405 and envelope(method.content, "invalid_request_error")
    huge = await shared.http.post(
        path, content=b" " * (5 << 20), headers={"content-type": "application/json"}
    )
    assert huge.status_code == 413
    assert huge.json()["error"]["type"] == "request_too_large"  # documented, but the SDK has no type for it


async def test_null_means_left_out(shared) -> None:
    names = ("system", "tools", "tool_choice", "thinking", "metadata", "stop_sequences", "top_k", "stream")
    answer = await shared.http.post("/v1/messages", json=BODY | dict.fromkeys(names))
    assert answer.status_code == 200, answer.text


async def test_what_cannot_matter_here_is_ignored(shared) -> None:
    fields = {
        "betas": ["context-management-2025-06-27"],
        "cache_control": {"type": "ephemeral"},
        "container": None,
        "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
        "mcp_servers": [],
        "metadata": {"user_id": "u", "more": 1},
        "service_tier": "auto",
        "tools": [],
    }
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "interleaved-thinking-2025-05-14"}
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        answer = await shared.http.post(f"{path}?beta=true", json=BODY | fields, headers=headers)
        assert answer.status_code == 200, answer.text
        assert "x-ignored-params" not in answer.headers


async def test_the_official_client_raises_its_own_errors(shared) -> None:
    async with async_client(shared.url) as client:
        with pytest.raises(anthropic.BadRequestError) as bad:
            await client.messages.create(**BODY, extra_body={"temperature": 2})
        assert bad.value.type == "invalid_request_error" and bad.value.request_id
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(**BODY | {"model": "claude-0"})
