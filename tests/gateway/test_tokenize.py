import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.gateway.conftest import RunningGateway

from rhizome_testing.talking_engine import TalkingEngine


async def post(gateway: RunningGateway, path: str, **fields: Any) -> Any:
    answer = await gateway.http.post(path, json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_prompt_becomes_tokens(gateway) -> None:
    assert await post(gateway, "/tokenize", model="talking-model", prompt="Hi é") == {
        "count": 5,
        "max_model_len": 512,
        "tokens": [72, 105, 32, 0xC3, 0xA9],
        "token_strs": None,
    }


async def test_tokens_may_be_named(gateway) -> None:
    answer = await post(gateway, "/tokenize", prompt="a b<|eot_id|>", return_token_strs=True)
    assert answer["token_strs"] == ["a", "Ġ", "b", "<|eot_id|>"]
    assert answer["tokens"][-1] == 260


async def test_a_conversation_is_what_a_chat_request_sends(gateway, engine: TalkingEngine) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    await gateway.chat()
    answer = await post(gateway, "/tokenize", messages=messages)
    assert answer["tokens"] == list(engine.submits[0].request.token_ids.ids)
    shorter = await post(gateway, "/tokenize", messages=messages, add_generation_prompt=False)
    assert answer["tokens"][: shorter["count"]] == shorter["tokens"]
    assert shorter["count"] < answer["count"]


async def test_tokens_become_text_again(gateway) -> None:
    assert await post(gateway, "/detokenize", tokens=[72, 105, 260]) == {"prompt": "Hi<|eot_id|>"}
    assert await post(gateway, "/detokenize", model="talking-model", tokens=[]) == {"prompt": ""}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(max_size=40))
async def test_text_survives_both_ways(gateway, text: str) -> None:
    tokens = (await post(gateway, "/tokenize", prompt=text))["tokens"]
    assert await post(gateway, "/detokenize", tokens=tokens) == {"prompt": text}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "nobody", "content": "a"}]}, "messages[0].role"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [300]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    ],
)
async def test_what_is_wrong_is_named(gateway, path: str, fields: dict[str, Any], param: str) -> None:
    answer = await gateway.http.post(path, json=fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "fields"), [("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})]
)
async def test_another_model_is_a_404(gateway, path: str, fields: dict[str, Any]) -> None:
    assert (await gateway.http.post(path, json=fields | {"model": "other"})).status_code == 404


async def test_a_long_text_holds_nobody_up(gateway) -> None:
    """The loop goes on while megabytes are tokenised."""
    long = asyncio.create_task(post(gateway, "/tokenize", prompt="word " * 400_000))
    answers = 0
    while not long.done():
        answers += (await gateway.http.get("/health")).status_code == 200
    assert (await long)["count"] == 2_000_000
    assert answers >= 3


async def test_the_tokenizer_is_described(gateway) -> None:
    info = (await gateway.http.get("/tokenizer_info")).json()
    assert (info["bos_token"], info["eos_token"]) == ("<|begin_of_text|>", "<|eot_id|>")
    assert (info["vocab_size"], info["model_max_length"]) == (300, 512)
    assert "start_header_id" in info["chat_template"]
