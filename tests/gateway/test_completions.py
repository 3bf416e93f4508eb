import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import openai
import pytest
from openai.types import Completion
from tests.gateway.conftest import eventually

from rhizome.engine.v1.generate_pb2 import FinishReason
from rhizome_testing.talking_engine import Finish, Hang, Refuse, Say, TalkingEngine
from rhizome_transport.errors import EngineError

LENGTH = Finish(FinishReason.FINISH_REASON_LENGTH)


async def complete(gateway: Any, **fields: Any) -> Any:
    answer = await gateway.http.post(
        "/v1/completions", json={"model": "talking-model", "prompt": "Hi"} | fields
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refused(gateway: Any, **fields: Any) -> Any:
    answer = await gateway.http.post(
        "/v1/completions", json={"model": "talking-model", "prompt": "Hi"} | fields
    )
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


async def chunks(gateway: Any, **fields: Any) -> list[Any]:
    body = {"model": "talking-model", "prompt": "Hi", "stream": True} | fields
    async with gateway.http.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        lines = [line async for line in answer.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def joined(parts: list[Any], index: int = 0) -> tuple[str, dict[str, list[Any]], list[str | None]]:
    """Text, log probabilities and finish reasons of one choice of a stream."""
    choices = [choice for part in parts for choice in part["choices"] if choice["index"] == index]
    columns: dict[str, list[Any]] = {}
    for choice in choices:
        for name, values in (choice["logprobs"] or {}).items():
            columns.setdefault(name, []).extend(values)
    return "".join(c["text"] for c in choices), columns, [c["finish_reason"] for c in choices]


@pytest.fixture
async def with_bos() -> AsyncIterator[TalkingEngine]:
    """An engine whose tokenizer begins texts with a token of its own."""
    engine = TalkingEngine()
    tokenizer = json.loads(engine.files["tokenizer.json"])
    name = "<|begin_of_text|>"
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {name: {"id": name, "ids": [256], "tokens": [name]}},
    }
    engine.files["tokenizer.json"] = json.dumps(tokenizer).encode()
    async with engine:
        yield engine


async def test_answers_the_official_client(gateway, engine: TalkingEngine) -> None:
    completion = await gateway.openai.completions.create(model="talking-model", prompt="Hi", seed=3)
    assert completion.choices[0].text == "Hello!"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.id.startswith("cmpl-") and completion.object == "text_completion"
    assert completion.system_fingerprint and completion.system_fingerprint.startswith("fp_")
    usage = completion.usage
    assert usage and (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (2, 6, 8)
    assert completion.model_extra and completion.model_extra["performance"]["prefill_time_ms"] == 20.0
    Completion.model_validate(completion.model_dump(), strict=True)
    request = engine.submits[0].request
    assert request.stop.max_tokens == 16
    assert request.sampling.seed == 3


async def test_answers_the_official_client_that_blocks(gateway) -> None:
    def ask() -> list[str]:
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
            stream = client.completions.create(model="talking-model", prompt="Hi", stream=True)
            return [chunk.choices[0].text for chunk in stream]

    assert "".join(await asyncio.to_thread(ask)) == "Hello!"


async def test_a_whole_choice_has_the_official_fields(gateway) -> None:
    answer = await complete(gateway)
    assert answer["choices"] == [{"index": 0, "text": "Hello!", "logprobs": None, "finish_reason": "stop"}]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([97, 98], ["ab"]),
        ([[97, 98], [260]], ["ab", "<|eot_id|>"]),
    ],
)
async def test_prompts_of_all_kinds_reach_the_engine(
    gateway, engine: TalkingEngine, prompt: Any, expected: list[str]
) -> None:
    engine.script = lambda text: [Say(text.upper() + "!")]
    answer = await complete(gateway, prompt=prompt)
    assert sorted(engine.prompts) == sorted(expected)
    assert [choice["text"] for choice in answer["choices"]] == [text.upper() + "!" for text in expected]
    assert answer["usage"]["prompt_tokens"] == sum(
        len(submit.request.token_ids.ids) for submit in engine.submits
    )


async def test_texts_begin_with_the_tokenizers_own_token(with_bos: TalkingEngine, start_gateway) -> None:
    with_bos.script = lambda prompt: [Say("!")]
    async with start_gateway(with_bos.target) as gateway:
        await gateway.becomes_ready()
        for fields in ({}, {"add_special_tokens": False}, {"prompt": [72, 105]}):
            await complete(gateway, **fields)
        echoed = await complete(gateway, prompt="<|eot_id|>Hi", echo=True)
        scored = await complete(gateway, prompt="<|eot_id|>Hi", echo=True, logprobs=0)
        as_ids = await complete(gateway, prompt=[256, 260, 72, 105], echo=True)
    assert with_bos.prompts[:3] == ["<|begin_of_text|>Hi", "Hi", "Hi"]
    # What the client wrote is shown, what the tokenizer added is not.
    assert echoed["choices"][0]["text"] == scored["choices"][0]["text"] == "<|eot_id|>Hi!"
    assert scored["choices"][0]["logprobs"]["tokens"] == ["<|begin_of_text|>", "<|eot_id|>", "H", "i", "!"]
    assert scored["choices"][0]["logprobs"]["text_offset"] == [0, 0, 10, 11, 12]
    assert as_ids["choices"][0]["text"] == "Hi!"


async def test_choices_come_prompt_by_prompt(gateway, engine: TalkingEngine) -> None:
    counted: dict[str, int] = {}

    def script(prompt: str) -> list[Say]:
        counted[prompt] = counted.get(prompt, 0) + 1
        return [Say(f"{prompt}{counted[prompt]}")]

    engine.script = script
    answer = await complete(gateway, prompt=["a", "bb"], n=2, seed=5)
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [
        (0, "a1"), (1, "a2"), (2, "bb1"), (3, "bb2"),
    ]  # fmt: skip
    assert [submit.request.sampling.seed for submit in engine.submits] == [5, 6, 5, 6]
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 10


async def test_a_stream_is_the_whole_answer(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(f"<{prompt}> 你好 one two three")]
    fields: dict[str, Any] = {
        "prompt": ["ab", "cdé"], "n": 2, "echo": True, "logprobs": 2, "stop": "three",
    }  # fmt: skip
    whole = await complete(gateway, **fields)
    parts = await chunks(gateway, **fields, stream_options={"include_usage": True})
    for choice in whole["choices"]:
        text, logprobs, reasons = joined(parts, choice["index"])
        assert text == choice["text"]
        assert logprobs == choice["logprobs"]
        assert reasons[-1] == choice["finish_reason"] == "stop"
        assert set(reasons[:-1]) == {None}
    assert parts[-1]["choices"] == [] and parts[-1]["usage"] == whole["usage"]
    assert all(part["usage"] is None for part in parts[:-1])
    assert "performance" in parts[-2]
    assert {part["id"] for part in parts} == {parts[0]["id"]}
    assert parts[0]["object"] == "text_completion"


async def test_echo_puts_the_prompt_before_the_answer(gateway) -> None:
    for prompt, text in ((["Hi 你", "b"], "Hi 你Hello!"), ([[72, 260, 105], [98]], "HiHello!")):
        answer = await complete(gateway, prompt=prompt, echo=True)
        assert [choice["text"] for choice in answer["choices"]] == [text, "bHello!"]
    parts = await chunks(gateway, echo=True)
    assert parts[0]["choices"][0]["text"] == "Hi"
    assert joined(parts)[0] == "HiHello!"


async def test_scores_a_prompt_and_generates_nothing(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [LENGTH]
    answer = await complete(gateway, prompt="AB C", echo=True, logprobs=1, max_tokens=0)
    assert engine.submits[0].request.stop.max_tokens == 0
    assert engine.submits[0].request.stop.HasField("max_tokens")
    assert answer["choices"][0] == {
        "index": 0,
        "text": "AB C",
        "logprobs": {
            "tokens": ["A", "B", " ", "C"],
            "token_logprobs": [None, pytest.approx(-0.66), pytest.approx(-0.32), pytest.approx(-0.67)],
            "top_logprobs": [
                None,
                {"C": 0.0, "B": pytest.approx(-0.66)},
                {"!": 0.0, " ": pytest.approx(-0.32)},
                {"D": 0.0, "C": pytest.approx(-0.67)},
            ],
            "text_offset": [0, 1, 2, 3],
        },
        "finish_reason": "length",
    }
    assert answer["usage"]["completion_tokens"] == 0


async def test_what_lm_eval_sends_is_scored_to_the_last_token(gateway, engine: TalkingEngine) -> None:
    """It takes the last entry for that of the one generated token, also where that ends the answer."""
    engine.script = lambda prompt: [Say(b"\n"), LENGTH] if "ab" in prompt else [Say("x"), LENGTH]
    answer = await complete(
        gateway, prompt=[[97, 98, 10, 99], [100, 101]], temperature=0, max_tokens=1, logprobs=1, seed=1234,
        echo=True, stop_token_ids=[10],
    )  # fmt: skip
    for submit in engine.submits:
        assert submit.request.stop.ignore_eos and not submit.request.stop.token_ids
    first, second = answer["choices"]
    assert first["logprobs"]["tokens"] == ["a", "b", "\n", "c", "\n"]
    assert [len(column) for column in first["logprobs"].values()] == [5] * 4
    assert (first["text"], first["finish_reason"]) == ("ab\nc", "stop")
    assert second["logprobs"]["tokens"] == ["d", "e", "x"]
    assert (second["text"], second["finish_reason"]) == ("dex", "length")
    assert first["logprobs"]["token_logprobs"][1:4] == pytest.approx([-0.98, -0.1, -0.99])


async def test_logprobs_of_the_answer_alone_count_from_its_start(gateway) -> None:
    logprobs = (await complete(gateway, logprobs=0))["choices"][0]["logprobs"]
    assert logprobs["tokens"] == list("Hello!")
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4, 5]
    assert logprobs["top_logprobs"][0] == {"H": -0.5}
    assert logprobs["token_logprobs"] == [-0.5] * 6


async def test_impossible_tokens_have_a_number_too(gateway) -> None:
    logprobs = (await complete(gateway, logprobs=2))["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"][0] == {"H": -0.5, "I": -9999.0}


async def test_parts_of_characters_are_written_as_bytes(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("é!")]
    choice = (await complete(gateway, prompt="ü", logprobs=1, echo=True))["choices"][0]
    assert choice["text"] == "üé!"
    assert choice["logprobs"]["tokens"] == [
        "bytes:\\xc3", "bytes:\\xbc", "bytes:\\xc3", "bytes:\\xa9", "!",
    ]  # fmt: skip
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 1, 2]


async def test_an_answer_completes_the_character_that_its_prompt_began(
    gateway, engine: TalkingEngine
) -> None:
    engine.script = lambda prompt: [Say(b"\xa9t\xc3\xa9")]
    began = [*b"caf", 0xC3]
    assert (await complete(gateway, prompt=began))["choices"][0]["text"] == "été"
    for fields in ({}, {"logprobs": 0}):
        choice = (await complete(gateway, prompt=began, echo=True, **fields))["choices"][0]
        assert choice["text"] == "cafété"
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 3, 4, 5, 5]


async def test_the_best_of_several_are_returned(gateway, engine: TalkingEngine) -> None:
    said = iter([-3.0, -1.0, -2.0, -1.0, -3.0, -2.0])
    engine.script = lambda prompt: [Say(f"{(logprob := next(said))} {prompt}", logprob=logprob)]
    answer = await complete(gateway, prompt=["a", "b"], n=2, best_of=3)
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [
        (0, "-1.0 a"), (1, "-2.0 a"), (2, "-1.0 b"), (3, "-2.0 b"),
    ]  # fmt: skip
    assert len(engine.submits) == 6
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 36
    assert all(submit.request.sampling.top_logprobs == 0 for submit in engine.submits)
    assert all(submit.request.sampling.HasField("top_logprobs") for submit in engine.submits)


async def test_a_stop_string_ends_one_choice_and_not_the_others(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("a stop b")] if prompt == "x" else [Say("go on")]
    answer = await complete(gateway, prompt=["x", "y"], stop=["stop"])
    assert [choice["text"] for choice in answer["choices"]] == ["a ", "go on"]


async def test_without_room_for_the_default_the_rest_of_the_context_is_used(
    gateway, engine: TalkingEngine
) -> None:
    await complete(gateway, prompt=["a" * 505, "b"])
    assert [submit.request.stop.max_tokens for submit in engine.submits] == [7, 16]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": "a" * 512}, "prompt", "context_length_exceeded"),
        ({"prompt": "a" * 500_000}, "prompt", "context_length_exceeded"),
        ({"prompt": ["a", "a" * 500], "max_tokens": 13}, "prompt[1]", "context_length_exceeded"),
        ({"prompt": "a" * 513, "max_tokens": 0}, "prompt", "context_length_exceeded"),
        ({"prompt": [[1], [300]]}, "prompt[1]", "invalid_value"),
        ({"prompt": [-1]}, "prompt", "invalid_value"),
        ({"prompt": ["a", ""]}, "prompt[1]", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [[1], []]}, "prompt", "invalid_value"),
        ({"prompt": [1, "a"]}, "prompt", "invalid_value"),
        ({"prompt": [True]}, "prompt", "invalid_value"),
        ({"prompt": [1.5]}, "prompt", "invalid_value"),
        ({"prompt": {"a": 1}}, "prompt", "invalid_value"),
        ({"prompt": None}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 2049}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 300, "n": 8}, "prompt", "invalid_value"),
        ({"prompt": [[1] * 500] * 700, "logprobs": 5, "echo": True}, "prompt", "invalid_value"),
        ({"max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"logprobs": 6}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_value"),
        ({"n": 3, "best_of": 2}, "best_of", "invalid_value"),
        ({"n": 9}, "n", "invalid_value"),
        ({"best_of": 9}, "best_of", "invalid_value"),
        ({"best_of": 2, "stream": True}, "best_of", "invalid_value"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"min_tokens": 17}, "min_tokens", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
    ],
)  # fmt: skip
async def test_what_cannot_be_served_is_refused(
    gateway, engine: TalkingEngine, fields: dict[str, Any], param: str, code: str
) -> None:
    error = await refused(gateway, **fields)
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert "aaaa" not in error["message"]
    assert not engine.submits


async def test_null_is_the_same_as_nothing(gateway, engine: TalkingEngine) -> None:
    await complete(gateway)
    names = ("best_of", "echo", "logprobs", "max_tokens", "n", "stop", "stream", "suffix", "user", "seed",
             "stream_options", "logit_bias", "temperature", "top_p", "response_format")  # fmt: skip
    await complete(gateway, **dict.fromkeys(names))
    first, second = (submit.request for submit in engine.submits)
    first.request_id = second.request_id = ""
    assert first == second


async def test_a_refusing_engine_gives_a_status_and_not_a_stream(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Refuse(EngineError(grpc.StatusCode.UNAVAILABLE, "full"))]
    answer = await gateway.http.post(
        "/v1/completions", json={"model": "talking-model", "prompt": "Hi", "stream": True}
    )
    assert answer.status_code == 503
    assert answer.headers["retry-after"]


async def test_a_client_that_leaves_ends_all_its_prompts(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("a"), Hang()]
    body = {"model": "talking-model", "prompt": ["a", "b", "c"], "stream": True}
    async with gateway.http.stream("POST", "/v1/completions", json=body) as answer:
        await anext(answer.aiter_lines())
    await eventually(lambda: len(engine.cancelled) == 3)


async def test_the_answer_may_have_to_be_one_of_some_texts(gateway, engine: TalkingEngine) -> None:
    await complete(gateway, structured_outputs={"choice": ["yes", "no"]})
    assert list(engine.submits[0].request.grammar.choice.texts) == ["yes", "no"]
