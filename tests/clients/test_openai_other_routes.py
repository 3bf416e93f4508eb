"""The official Python SDK: completions, embeddings, models and responses."""

from __future__ import annotations

import json
import math
from typing import Any
from urllib.request import Request, urlopen

import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field
from tests.clients.conftest import KEY

MODEL = "rhizome-demo"
PARIS = "The capital of France is Paris."


class Person(BaseModel):
    name: str = Field(max_length=8)
    age: int = Field(ge=1, le=120)


def test_a_text_is_continued(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "7 + 5 =", "temperature": 0, "max_tokens": 2}
    answer = client.completions.create(**asked)
    assert answer.object == "text_completion"
    assert "12" in answer.choices[0].text
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == answer.choices[0].text
    assert chunks[-1].usage == answer.usage


def test_several_prompts_come_back_in_their_order(client: OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["7 + 5 =", "2 + 3 ="], n=2, temperature=0, max_tokens=4, echo=True
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text[:7] for choice in answer.choices] == ["7 + 5 ="] * 2 + ["2 + 3 ="] * 2


def test_a_prompt_is_scored(client: OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="7 + 5 = 12", max_tokens=0, echo=True, logprobs=2, temperature=0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None and logprobs.token_logprobs is not None
    assert logprobs.text_offset is not None
    # The mark of the beginning is scored like any token and has no text.
    assert "".join(logprobs.tokens[1:]) == answer.choices[0].text == "7 + 5 = 12"
    for token, offset in zip(logprobs.tokens[1:], logprobs.text_offset[1:], strict=True):
        assert answer.choices[0].text[offset:].startswith(token)
    assert logprobs.token_logprobs[0] is None
    assert all(score <= 0 for score in logprobs.token_logprobs[1:])


def test_a_chats_prompt_is_scored_as_the_same_tokens_are_in_a_completion(base_url: str) -> None:
    def ask(path: str, **fields: Any) -> Any:
        body = json.dumps({"model": MODEL, "temperature": 0, "prompt_logprobs": 3, **fields}).encode()
        headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
        # Not by the SDK, whose answers are watched for fields that are not OpenAI's.
        with urlopen(Request(f"{base_url}/{path}", body, headers), timeout=60) as answer:
            return json.load(answer)

    messages = [{"role": "user", "content": "What is 7 + 5?"}]
    chat = ask("chat/completions", messages=messages, max_tokens=1, return_token_ids=True)
    ids = chat["prompt_token_ids"]
    answer = ask("completions", prompt=ids, max_tokens=0, echo=True, logprobs=3)["choices"][0]
    assert answer["prompt_logprobs"] == chat["prompt_logprobs"]
    entries = chat["prompt_logprobs"]
    assert entries[0] is None and len(entries) == len(ids)
    wanted = answer["logprobs"]["token_logprobs"]
    assert [entry and entry[str(i)]["logprob"] for i, entry in zip(ids, entries, strict=True)] == wanted
    for entry in entries[1:]:
        ranked = sorted((one["rank"], one["logprob"]) for one in entry.values() if one["rank"])
        assert [rank for rank, _ in ranked] == [1, 2, 3]
        assert [logprob for _, logprob in ranked] == sorted((logprob for _, logprob in ranked), reverse=True)
    cut = ask("completions", prompt=ids, max_tokens=0, truncate_prompt_tokens=5, return_token_ids=True)
    assert cut["choices"][0]["prompt_token_ids"] == ids[-5:] and cut["usage"]["prompt_tokens"] == 5


async def test_tokens_are_continued_asynchronously(async_client: AsyncOpenAI) -> None:
    answer = await async_client.completions.create(model=MODEL, prompt=[1, 2, 3], max_tokens=2, seed=1)
    assert answer.usage is not None and answer.usage.prompt_tokens == 3


def test_vectors_are_the_same_in_both_encodings(client: OpenAI) -> None:
    texts = ["The sky is blue.", "Paris"]
    by_default = client.embeddings.create(model=MODEL, input=texts)  # the SDK asks for base64 and decodes it
    floats = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    assert [item.index for item in by_default.data] == [0, 1]
    for one, other in zip(by_default.data, floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert math.hypot(*one.embedding) == pytest.approx(1, abs=1e-5)
    assert by_default.usage == floats.usage
    assert isinstance(client.embeddings.create(model=MODEL, input="a", encoding_format="base64").data, list)


async def test_vectors_come_asynchronously(async_client: AsyncOpenAI) -> None:
    answer = await async_client.embeddings.create(model=MODEL, input=[[1, 2, 3], [4]])
    assert len(answer.data) == 2 and answer.usage.prompt_tokens == 4


def test_models_are_listed_and_described(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert MODEL in names and "gpt-4.1-mini" in names
    for name in names:
        model = client.models.retrieve(name)
        assert (model.id, model.object) == (name, "model")


def test_a_response(client: OpenAI) -> None:
    response = client.responses.create(model=MODEL, input="What is the capital of France?", temperature=0)
    assert (response.output_text, response.status) == (PARIS, "completed")


async def test_a_streamed_response(async_client: AsyncOpenAI) -> None:
    async with async_client.responses.stream(
        model=MODEL, input="What is the capital of France?", temperature=0
    ) as stream:
        deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert "".join(deltas) == final.output_text == PARIS


def test_a_parsed_response(client: OpenAI) -> None:
    response = client.responses.parse(model=MODEL, input="Who is Ada?", text_format=Person, temperature=0)
    assert isinstance(response.output_parsed, Person)


def test_a_response_calls_a_tool(client: OpenAI) -> None:
    response = client.responses.create(
        model=MODEL,
        input="Hi",
        temperature=0,
        tool_choice="required",
        parallel_tool_calls=False,
        tools=[
            {
                "type": "function",
                "name": "roll",
                "strict": True,
                "parameters": {
                    "type": "object",
                    "properties": {"sides": {"enum": [6, 20]}},
                    "required": ["sides"],
                    "additionalProperties": False,
                },
            }
        ],
    )
    (call,) = response.output
    assert call.type == "function_call" and call.name == "roll"
    assert json.loads(call.arguments)["sides"] in (6, 20)
