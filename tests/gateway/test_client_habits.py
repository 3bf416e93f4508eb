"""What clients of other projects send whether it matters or not, in the words in which they send it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.gateway.conftest import RunningGateway

from rhizome_testing.talking_engine import Say, TalkingEngine, Until

HI = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"tools": []}, id="an agent without tools"),
        pytest.param({"tools": [], "tool_choice": "auto"}, id="and with a choice among them"),
        pytest.param({"tools": None, "tool_choice": "auto", "parallel_tool_calls": True}, id="nulls"),
        pytest.param({"logprobs": False, "top_logprobs": 0}, id="no log probabilities, twice"),
    ],
)
async def test_a_field_that_asks_for_nothing_changes_nothing(
    gateway: RunningGateway, engine: TalkingEngine, fields: dict[str, Any]
) -> None:
    plain = (await gateway.chat()).json()["choices"]
    answer = await gateway.chat(**fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"] == plain
    assert engine.prompts[0] == engine.prompts[1]
    assert "x-ignored-params" not in answer.headers


async def test_the_first_chunk_is_the_time_of_the_first_token(
    gateway: RunningGateway, engine: TalkingEngine
) -> None:
    """vLLM's benchmark takes the first chunk with a choice for the first token, and so do latency routers."""
    prefilled = asyncio.Event()
    engine.script = lambda prompt: [Until(prefilled), Say("Hello!")]
    body = {"model": "talking-model", "messages": HI, "stream": True, "n": 2}
    deltas: dict[int, list[Any]] = {0: [], 1: []}
    async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        first = asyncio.ensure_future(anext(lines))
        await asyncio.wait([first], timeout=0.2)
        assert not first.done()
        prefilled.set()
        for line in [await first, *[line async for line in lines]]:
            if line.startswith("data: {"):
                choice = json.loads(line[6:])["choices"][0]
                deltas[choice["index"]].append(choice["delta"])
    for mine in deltas.values():
        assert mine[0] == {"role": "assistant", "content": "", "refusal": None}
        assert "".join(delta["content"] for delta in mine[1:-1]) == "Hello!"


@pytest.mark.parametrize(
    "nothing", [{"content": None}, {"content": None, "tool_calls": []}, {"content": ""}, {}]
)
async def test_an_empty_answer_can_be_sent_back(
    gateway: RunningGateway, engine: TalkingEngine, nothing: dict[str, Any]
) -> None:
    """Agents keep an answer that came empty, and most write its content as null."""
    answer = await gateway.chat(messages=[*HI, {"role": "assistant"} | nothing, *HI])
    assert answer.status_code == 200, answer.text
    assert engine.prompts[0].count("Hi") == 2


# What these clients send, less the texts: recorded, but for the benchmarks of vLLM and SGLang, which were
# read from their sources. Name of the client: path, body, what is in X-Ignored-Params.
RECORDED: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "guidellm 0.8": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "stream": True,
            # With continuous_usage_stats as well, which test_annotated.py is about.
            "stream_options": {"include_usage": True},
            "max_completion_tokens": 16,
            "ignore_eos": True,
        },
        None,
    ),
    "aiperf 0.13": (
        "/v1/chat/completions",
        {
            "messages": HI,
            "stream": True,
            "max_completion_tokens": 16,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
        },
        None,
    ),
    "vLLM's benchmark": (
        "/v1/completions",
        {
            "prompt": "Hi",
            "repetition_penalty": 1.0,
            "max_tokens": 16,
            "logprobs": None,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        None,
    ),
    "SGLang's benchmark": (
        "/v1/completions",
        {
            "prompt": "Hi",
            "temperature": 0.0,
            "best_of": 1,
            "max_tokens": 16,
            "stream": True,
            "ignore_eos": True,
        },
        None,
    ),
    "lm-eval 0.4": (
        "/v1/completions",
        {
            "prompt": [[72, 105], [72, 111]],
            "temperature": 0,
            "max_tokens": 1,
            "logprobs": 1,
            "seed": 1234,
            "echo": True,
        },
        None,
    ),
    "mistralai 3.7": (
        "/v1/chat/completions",
        {"messages": HI, "max_tokens": 5, "stream": False, "random_seed": 1, "safe_prompt": False},
        "random_seed, safe_prompt",
    ),
    "openai-agents 0.24, chat": (
        "/v1/chat/completions",
        {
            "messages": HI,
            "frequency_penalty": 0.0,
            "logprobs": True,
            "max_tokens": 300,
            "metadata": {"a": "b"},
            "presence_penalty": 0.0,
            "reasoning_effort": "low",
            "store": True,
            "temperature": 0.0,
            "top_logprobs": 2,
            "top_p": 0.9,
            "verbosity": "low",
        },
        None,
    ),
    "openai-agents 0.24, Responses": (
        "/v1/responses",
        {
            "include": [],
            "input": HI,
            "max_output_tokens": 300,
            "metadata": {"a": "b"},
            "reasoning": {"effort": "low", "summary": "auto"},
            "store": True,
            "temperature": 0.0,
            "text": {"verbosity": "low"},
            "tools": [],
            "top_p": 0.9,
            "truncation": "auto",
        },
        None,
    ),
}


@pytest.mark.parametrize("client", RECORDED)
async def test_what_clients_send_is_answered(
    gateway: RunningGateway, engine: TalkingEngine, client: str
) -> None:
    """That the answer has the form of its API is seen to by the watch over all tests here."""
    path, body, ignored = RECORDED[client]
    answer = await gateway.http.post(path, json={"model": "talking-model", **body})
    assert answer.status_code == 200, answer.text
    assert answer.headers.get("x-ignored-params") == ignored
    if "stream_options" in body:
        usage = json.loads(answer.text.split("\n\n")[-3].removeprefix("data: "))["usage"]
        assert usage["completion_tokens"] == len("Hello!")
    if body.get("echo"):
        for choice in answer.json()["choices"]:
            assert len(choice["logprobs"]["token_logprobs"]) == 2 + len("Hello!")
            assert choice["logprobs"]["token_logprobs"][0] is None
