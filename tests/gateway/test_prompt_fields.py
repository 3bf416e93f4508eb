"""`prompt_logprobs` and `truncate_prompt_tokens`: what vLLM's clients ask about a prompt."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.conftest import RunningGateway

from rhizome_gateway.tokenization.inputs import ModelInput
from rhizome_testing.talking_engine import Say, TalkingEngine

HI = [{"role": "user", "content": "Hi"}]
PATHS = {"/v1/chat/completions": {"messages": HI}, "/v1/completions": {"prompt": "Hi there"}}
CONTEXT = 512


async def ask(gateway: RunningGateway, path: str, status: int = 200, **fields: Any) -> Any:
    """The body of an answer with more than OpenAI's fields; the other clients are watched for that."""
    body = json.dumps({"model": "talking-model"} | PATHS.get(path, {}) | fields).encode()
    request = Request(gateway.url + path, body, {"content-type": "application/json"})

    def read() -> tuple[int, bytes]:
        try:
            with urlopen(request, timeout=20) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            return error.code, error.read()

    found, told = await asyncio.to_thread(read)
    assert found == status, told
    return json.loads(told)


def read_ids(engine: TalkingEngine) -> list[list[int]]:
    """The prompts that the engine was given, in order."""
    return [list(submit.request.token_ids.ids) for submit in engine.submits]


def scores(ids: list[int], rivals: int) -> list[Any]:
    """What the engine says of a prompt: of token 65, -0.65; its rivals follow it."""
    told: list[Any] = [None]
    for i in ids[1:]:
        entry = {str(i): (-i / 100, None)}
        told.append(entry | {str(i + 1 + place): (-place, place + 1) for place in range(rivals)})
    return told


def numbers(shown: list[Any]) -> list[Any]:
    return [
        entry and {i: (round(one["logprob"], 6), one["rank"]) for i, one in entry.items()} for entry in shown
    ]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rivals", [0, 2])
async def test_each_token_of_a_prompt_is_scored(
    gateway: RunningGateway, engine: TalkingEngine, path: str, rivals: int
):
    answer = await ask(gateway, path, prompt_logprobs=rivals, n=2)
    ids = read_ids(engine)[0]
    shown = [answer] if "chat" in path else answer["choices"]
    for one in shown:
        assert numbers(one["prompt_logprobs"]) == scores(ids, rivals)
    if "chat" not in path:
        names = [
            entry[str(i)]["decoded_token"]
            for i, entry in zip(ids[1:], one["prompt_logprobs"][1:], strict=True)
        ]
        assert "".join(names) == "i there"
        assert [choice["text"] for choice in answer["choices"]] == ["Hello!"] * 2  # the prompt is not echoed
    assert [submit.request.HasField("prompt_logprobs") for submit in engine.submits] == [True, False]
    assert "prompt_logprobs" not in str(await ask(gateway, path))


async def test_each_answer_of_several_prompts_shows_its_own(gateway: RunningGateway, engine: TalkingEngine):
    answer = await ask(
        gateway, "/v1/completions", prompt=["ab", "xyz"], n=2, best_of=3, prompt_logprobs=1, echo=True
    )
    wanted = [scores(list(prompt), 1) for prompt in (b"ab", b"ab", b"xyz", b"xyz")]
    assert [numbers(choice["prompt_logprobs"]) for choice in answer["choices"]] == wanted
    assert [choice["text"] for choice in answer["choices"]] == ["abHello!"] * 2 + ["xyzHello!"] * 2


async def test_it_goes_with_an_echo_that_is_scored_alike(gateway: RunningGateway, engine: TalkingEngine):
    answer = await ask(gateway, "/v1/completions", prompt="abc", echo=True, logprobs=1, prompt_logprobs=1)
    choice = answer["choices"][0]
    assert numbers(choice["prompt_logprobs"]) == scores(list(b"abc"), 1)
    assert choice["logprobs"]["tokens"] == list("abcHello!")


async def test_a_long_prompt_comes_in_pieces_and_in_order(gateway: RunningGateway, engine: TalkingEngine):
    ids = [97 + place % 20 for place in range(300)]
    answer = await ask(gateway, "/v1/completions", prompt=ids, max_tokens=1, prompt_logprobs=1)
    assert numbers(answer["choices"][0]["prompt_logprobs"]) == scores(ids, 1)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": "all"}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": CONTEXT + 1}, "truncate_prompt_tokens"),
    ],
)
async def test_what_cannot_be_done_is_refused(
    gateway: RunningGateway, engine: TalkingEngine, path: str, fields: dict[str, Any], param: str
):
    error = (await ask(gateway, path, 400, **fields))["error"]
    assert error["param"] == param and error["code"] == "invalid_value"
    assert not engine.submits


async def test_two_kinds_of_scores_must_agree(gateway: RunningGateway, engine: TalkingEngine):
    fields = {"echo": True, "logprobs": 1, "prompt_logprobs": 2}
    assert "prompt_logprobs" in (await ask(gateway, "/v1/completions", 400, **fields))["error"]["message"]


async def test_more_scores_than_a_response_may_hold_are_refused(
    gateway: RunningGateway, engine: TalkingEngine
):
    prompts = [[97] * 500] * 25
    error = (await ask(gateway, "/v1/completions", 400, prompt=prompts, prompt_logprobs=20))["error"]
    assert "log probabilities" in error["message"] and error["param"] == "prompt_logprobs"
    error = (await ask(gateway, "/v1/completions", 400, prompt=prompts[:5], prompt_logprobs=20, n=6))["error"]
    assert "log probabilities" in error["message"]
    await ask(gateway, "/v1/completions", prompt=prompts[:2], prompt_logprobs=20)


@pytest.mark.parametrize("path", PATHS)
async def test_only_the_end_of_a_prompt_is_read(gateway: RunningGateway, engine: TalkingEngine, path: str):
    await ask(gateway, path)
    whole = read_ids(engine)[0]
    for kept in (1, 3, len(whole), len(whole) + 1, -1):
        answer = await ask(gateway, path, truncate_prompt_tokens=kept)
        wanted = whole if kept == -1 else whole[-kept:]
        assert read_ids(engine)[-1] == wanted
        assert answer["usage"]["prompt_tokens"] == len(wanted)


@pytest.mark.parametrize("path", PATHS)
async def test_a_prompt_longer_than_the_context_can_be_cut_to_fit(
    gateway: RunningGateway, engine: TalkingEngine, path: str
):
    # A chat may be as long as one that fits might be, were its tokens long ones; a text is shortened before.
    chars = 200_000 if path == "/v1/completions" else 5_000
    text = "".join(chr(97 + place * place % 26) for place in range(chars))
    fields: dict[str, Any] = {"prompt": text} if path == "/v1/completions" else {}
    fields |= {"messages": [{"role": "user", "content": text}]} if not fields else {}
    assert (await ask(gateway, path, 400, **fields))["error"]["code"] == "context_length_exceeded"
    for kept, limit, length in ((-1, 10, CONTEXT - 10), (-1, None, None), (100, 10, 100)):
        await ask(gateway, path, **fields, truncate_prompt_tokens=kept, max_tokens=limit)
        read = read_ids(engine)[-1]
        answer_room = {"/v1/completions": 16}.get(path, 1)
        assert len(read) == (length or CONTEXT - answer_room)
        assert text[-50:] in bytes(i for i in read if i < 256).decode()
    error = await ask(gateway, path, 400, **fields, truncate_prompt_tokens=CONTEXT, max_tokens=10)
    assert error["error"]["code"] == "context_length_exceeded"


async def test_an_echo_is_what_was_read(gateway: RunningGateway, engine: TalkingEngine):
    engine.script = lambda prompt: [Say("!")]
    fields = {"truncate_prompt_tokens": 2, "echo": True, "logprobs": 0, "prompt_logprobs": 0}
    choice = (await ask(gateway, "/v1/completions", prompt=["abcd", "xyz"], **fields))["choices"][0]
    assert choice["text"] == "cd!" and choice["logprobs"]["text_offset"] == [0, 1, 2]
    assert [*choice["prompt_logprobs"][1]] == [str(ord("d"))]


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8), st.integers(1, 12), st.booleans())
def test_what_is_left_of_an_input_is_its_own(before: int, text: int, behind: int, count: int, first: bool):
    """The tokens that the client wrote are the same ones before and after."""
    ids = [1] * before + [2] * text + [3] * behind
    kept = slice(count) if first else slice(-count, None)
    part = ModelInput(ids, range(before, before + text), True).part(kept)
    assert part.token_ids == ids[kept]
    shown = [i for place, i in enumerate(part.token_ids) if part.shows(place, frozenset())]
    assert shown == [i for i in ids[kept] if i == 2]


async def test_only_the_beginning_of_what_is_embedded_is_read(gateway: RunningGateway, engine: TalkingEngine):
    texts = ["abcdef", "b" * 2_000]
    for kept, lengths in ((3, [3, 3]), (-1, [6, CONTEXT])):
        await ask(gateway, "/v1/embeddings", input=texts, truncate_prompt_tokens=kept)
        read = [bytes(one.ids).decode() for one in engine.embeds[-1].inputs]
        assert [len(one) for one in read] == lengths
        assert all(text.startswith(one) for text, one in zip(texts, read, strict=True))
