"""What vLLM's clients ask for besides an answer: token ids, the cost so far, no thinking, fields refused."""

import asyncio
import json
from typing import Any
from urllib.request import Request, urlopen

import pytest
from tests.gateway.conftest import RunningGateway, running_gateway

from rhizome.engine.v1.generate_pb2 import Finished, FinishReason, GenerateResponse, TokenDelta
from rhizome_gateway.generation.choice import Choice
from rhizome_gateway.schema.refused import REFUSED
from rhizome_testing.talking_engine import END_OF_TURN, Say, TalkingEngine
from rhizome_text.tokenizer import Tokenizer

HI = {"messages": [{"role": "user", "content": "Hi"}]}
PATHS = {"/v1/chat/completions": HI, "/v1/completions": {"prompt": "Hi"}}


async def asked(gateway: RunningGateway, path: str, **fields: Any) -> str:
    """The body of an answer with more than OpenAI's fields; the other clients are watched for that."""
    body = json.dumps({"model": "talking-model"} | PATHS[path] | fields).encode()
    request = Request(gateway.url + path, body, {"content-type": "application/json"})

    def read() -> str:
        with urlopen(request, timeout=20) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(read)


async def chunks(gateway: RunningGateway, path: str, **fields: Any) -> list[Any]:
    events = (await asked(gateway, path, stream=True, **fields)).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2] if not event.startswith(":")]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stop", [None, "!"])
async def test_whole_answers_show_their_tokens(gateway, engine: TalkingEngine, path: str, stop: str | None):
    engine.script = lambda prompt: [Say("Héllo"), Say("! and more", at_once=True)]
    answer = json.loads(await asked(gateway, path, return_token_ids=True, n=2, stop=stop))
    wanted = list("Héllo!".encode() if stop else "Héllo! and more".encode())
    prompt = list(engine.submits[-1].request.token_ids.ids)
    for choice in answer["choices"]:
        assert choice["token_ids"] == wanted
        assert choice.get("prompt_token_ids", answer.get("prompt_token_ids")) == prompt
        assert ("prompt_token_ids" in answer) == (path == "/v1/chat/completions")
    for off in (False, None):
        answer = json.loads(await asked(gateway, path, return_token_ids=off))
        assert "token_ids" not in str(answer)


@pytest.mark.parametrize("path", PATHS)
async def test_streams_show_each_token_once_and_the_prompt_first(gateway, engine: TalkingEngine, path: str):
    engine.script = lambda prompt: [Say("H"), Say("é😀llo", at_once=True), Say("!")]
    parts = await chunks(gateway, path, return_token_ids=True, n=2)
    prompt = list(engine.submits[-1].request.token_ids.ids)
    for index in range(2):
        choices = [choice for part in parts for choice in part["choices"] if choice["index"] == index]
        assert [i for choice in choices for i in choice["token_ids"]] == list("Hé😀llo!".encode())
        assert not choices[0]["token_ids"] or choices[0].get("text")  # none with the role
        if path == "/v1/completions":
            assert [choice.get("prompt_token_ids") for choice in choices] == [prompt] + [None] * (
                len(choices) - 1
            )
    if path == "/v1/chat/completions":
        assert [part.get("prompt_token_ids") for part in parts] == [prompt] + [None] * (len(parts) - 1)
    for index in range(2):
        choices = [choice for part in parts for choice in part["choices"] if choice["index"] == index]
        said = [choice["text"] if "text" in choice else choice["delta"].get("content") for choice in choices]
        assert "".join(text or "" for text in said) == "Hé😀llo!"
        assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]


def test_the_token_that_ended_an_answer_is_one_of_its_tokens() -> None:
    choice = Choice(Tokenizer.from_files(TalkingEngine().files), keep_ids=True)
    choice.feed_tokens([72])
    choice.feed(GenerateResponse(delta=TokenDelta(token_ids=[105])))
    stopped = Finished(reason=FinishReason.FINISH_REASON_STOP, stop_token_id=END_OF_TURN)
    choice.feed(GenerateResponse(finished=stopped))
    assert choice.token_ids == [72, 105, END_OF_TURN]


@pytest.mark.parametrize("path", PATHS)
async def test_usage_so_far_is_in_every_chunk_where_asked_for(gateway, engine: TalkingEngine, path: str):
    engine.script = lambda prompt: [Say("Hello")]
    options = {"include_usage": True, "continuous_usage_stats": True}
    parts = await chunks(gateway, path, stream_options=options)
    prompt_tokens = len(engine.submits[-1].request.token_ids.ids)
    said = 0
    for part in parts[:-1]:
        choice = part["choices"][0]
        said += len(choice["text"] if path == "/v1/completions" else choice["delta"].get("content") or "")
        assert part["usage"] == {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": part["usage"]["completion_tokens"],
            "total_tokens": prompt_tokens + part["usage"]["completion_tokens"],
        }
        assert part["usage"]["completion_tokens"] >= said
        assert part["usage"]["completion_tokens"] == 0 or said  # with the role none
    assert parts[-1]["choices"] == [] and parts[-1]["usage"]["completion_tokens"] == said == 5
    without = await chunks(gateway, path, stream_options=options | {"include_usage": False})
    assert not any("usage" in part for part in without)


@pytest.mark.parametrize("path", PATHS)
async def test_log_probabilities_name_tokens_by_number(gateway, path: str) -> None:
    wanted = {"logprobs": True, "top_logprobs": 1} if path == "/v1/chat/completions" else {"logprobs": 1}
    answer = json.loads(await asked(gateway, path, return_tokens_as_token_ids=True, **wanted))
    logprobs = answer["choices"][0]["logprobs"]
    names = logprobs["tokens"] if "tokens" in logprobs else [one["token"] for one in logprobs["content"]]
    assert names == [f"token_id:{byte}" for byte in b"Hello!"]
    parts = await chunks(gateway, path, return_tokens_as_token_ids=True, **wanted)
    assert f"token_id:{ord('H')}" in str(parts)


async def test_thinking_can_be_left_out(engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("<think>hm</think>Yes")]
    async with running_gateway(engine.target, reasoning_parser="think") as gateway:
        await gateway.becomes_ready()
        path = "/v1/chat/completions"
        assert "hm" in await asked(gateway, path)
        answer = json.loads(await asked(gateway, path, include_reasoning=False))
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Yes", "refusal": None}
        parts = await chunks(gateway, path, include_reasoning=False)
        deltas = [part["choices"][0]["delta"] for part in parts]
        assert deltas[0]["role"] == "assistant" and "reasoning" not in str(deltas)
        assert "".join(delta.get("content") or "" for delta in deltas) == "Yes"
        whole = json.loads(await asked(gateway, path, include_reasoning=False, logprobs=True))
        parts = await chunks(gateway, path, include_reasoning=False, logprobs=True)
        streamed = [part["choices"][0]["logprobs"] or {"content": []} for part in parts]
        shown = [
            whole["choices"][0]["logprobs"]["content"],
            [entry for one in streamed for entry in one["content"]],
        ]
        for entries in shown:
            names = [entry["token"] for entry in entries]
            assert names[-3:] == ["Y", "e", "s"] and "m" not in names
        thought = json.loads(await asked(gateway, path, logprobs=True))["choices"][0]["logprobs"]["content"]
        assert "m" in [entry["token"] for entry in thought]


@pytest.mark.parametrize("path", PATHS)
async def test_what_would_change_the_answer_and_is_not_offered_is_refused(gateway, path: str) -> None:
    nothing = dict(zip(sorted(REFUSED), [None, False, [], {}, ""] * 9, strict=False))
    assert (await gateway.http.post(path, json={"model": "m"} | PATHS[path] | nothing)).status_code == 404
    for name in REFUSED:
        for value in (0, 1, True, ["x"], {"x": 1}, "x"):
            answer = await gateway.http.post(path, json={"model": "m", name: value} | PATHS[path])
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "unsupported_parameter"
            assert answer.json()["error"]["param"] == name
