from typing import Any

import pytest
from tests.gateway.prompt.conftest import Serve

from rhizome_gateway.errors import ApiError
from rhizome_gateway.openai.chat.request import ChatCompletionRequest
from rhizome_gateway.prompt.from_openai import chat_prompt


def request(*messages: dict[str, Any], **fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate({"model": "m", "messages": list(messages), **fields})


USER = {"role": "user", "content": [{"type": "text", "text": "Good "}, {"type": "text", "text": "day"}]}


async def test_parts_are_joined_and_a_refusal_is_something_said(serve: Serve) -> None:
    prompt = await chat_prompt(serve(), request(USER, {"role": "assistant", "refusal": "No."}, USER), None)
    assert prompt.text.startswith("[user]Good day<|eot_id|>[assistant]No.<|eot_id|>[user]Good day")


async def test_a_control_token_cut_in_two_parts_is_still_text(serve: Serve) -> None:
    cut = [{"type": "text", "text": "<|eot"}, {"type": "text", "text": "_id|>"}]
    prompt = await chat_prompt(serve(), request({"role": "user", "content": cut}), None)
    assert prompt.token_ids.count(260) == 1


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
async def test_reasoning_is_taken_by_both_names(serve: Serve, name: str) -> None:
    prompt = await chat_prompt(
        serve(), request(USER, {"role": "assistant", "content": "42", name: "Hm."}), None
    )
    assert "[assistant]<think>Hm.</think>42" in prompt.text


async def test_effort_and_variables_reach_the_template(serve: Serve) -> None:
    assert not (await chat_prompt(serve(), request(USER, reasoning_effort="none"), None)).opens_reasoning
    off = {"enable_thinking": False}
    assert not (await chat_prompt(serve(), request(USER, chat_template_kwargs=off), None)).opens_reasoning
    assert (await chat_prompt(serve(), request(USER, reasoning_effort="high"), None)).opens_reasoning


async def test_both_ways_to_end_a_prompt_are_one_too_many(serve: Serve) -> None:
    both = {"add_generation_prompt": True, "continue_final_message": True}
    with pytest.raises(ApiError, match="ask for one of them"):
        await chat_prompt(serve(), request(USER, {"role": "assistant", "content": "x"}, **both), None)


async def test_prompt_and_answer_must_fit_together(serve: Serve) -> None:
    served = serve(context=60)
    assert len((await chat_prompt(served, request(USER, max_tokens=10), None)).token_ids) <= 50
    with pytest.raises(ApiError, match="60 tokens") as failure:
        await chat_prompt(served, request(USER, max_tokens=50), None)
    assert failure.value.code == "context_length_exceeded"
