import time

import pytest
from tests.gateway.responses.conftest import ARGUMENTS, BODY, CALL, WEATHER, responses_gateway, whole

from rhizome.engine.v1.generate_pb2 import FinishReason
from rhizome_gateway.openai.responses.request import ResponsesRequest
from rhizome_testing.talking_engine import Finish, Say, TalkingEngine

USER = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
SYSTEM = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>"
ANSWER = "<|start_header_id|>assistant<|end_header_id|>\n\n"


async def test_a_response_has_all_that_the_official_one_has(gateway, engine: TalkingEngine) -> None:
    before = int(time.time())
    response = await whole(gateway, instructions="Be brief.")
    assert response.pop("id").startswith("resp_")
    (message,) = response.pop("output")
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "annotations": [], "logprobs": [], "text": "Hello!"}],
    }
    assert before <= response.pop("created_at") <= response.pop("completed_at") <= time.time()
    assert set(response.pop("performance")) >= {"prefill_time_ms", "tokens_per_second"}
    prompt_tokens = len(engine.submits[0].request.token_ids.ids)
    assert response == {
        "object": "response",
        "status": "completed",
        "model": "talking-model",
        "error": None,
        "incomplete_details": None,
        "background": False,
        "previous_response_id": None,
        "instructions": "Be brief.",
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": False,
        "temperature": 0.5,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "user": None,
        "usage": {
            "input_tokens": prompt_tokens,
            "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
            "output_tokens": 6,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt_tokens + 6,
        },
    }
    assert engine.prompts == [SYSTEM.format("Be brief.") + USER.format("Hi") + ANSWER]


async def test_what_was_asked_comes_back(gateway, engine: TalkingEngine) -> None:
    asked = {
        "temperature": 0.25,
        "top_p": 0.5,
        "max_output_tokens": 40,
        "max_tool_calls": 3,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "key",
        "safety_identifier": "who",
        "user": "me",
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "json_object"}, "verbosity": "low"},
        "tools": [WEATHER],
        "tool_choice": "none",
        "top_logprobs": 2,
    }
    response = await whole(gateway, **asked, store=True, truncation="auto", service_tier="flex")
    assert {name: response[name] for name in asked} == asked
    assert (response["store"], response["truncation"], response["service_tier"]) == (
        False,
        "disabled",
        "default",
    )
    request = engine.submits[0].request
    assert request.stop.max_tokens == 40
    assert (request.sampling.temperature, request.sampling.top_p) == (0.25, 0.5)
    assert request.HasField("grammar")


async def test_null_means_absent(gateway, engine: TalkingEngine) -> None:
    names = ResponsesRequest.model_fields.keys() - BODY.keys()
    assert len(names) > 20
    first, second = await whole(gateway), await whole(gateway, **dict.fromkeys(names))
    for response in (first, second):
        for name in ("id", "output", "created_at", "completed_at", "performance"):
            del response[name]
    assert first == second
    answer = await gateway.http.post("/v1/responses", json=BODY | dict.fromkeys(names))
    assert "x-ignored-params" not in answer.headers


async def test_thinking_text_and_calls_are_items_in_their_order(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(f"<think>Hm. Rain?</think>\n\nI look.\n{CALL}\n{CALL}")]
    response = await whole(gateway, tools=[WEATHER])
    thinking, text, first, second = response["output"]
    assert thinking["id"].startswith("rs_")
    assert thinking | {"id": ""} == {
        "id": "",
        "type": "reasoning",
        "status": "completed",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm. Rain?"}],
    }
    assert text["content"][0]["text"] == "I look."
    for call in (first, second):
        assert call["id"].startswith("fc_") and call["call_id"].startswith("call_")
        assert (call["type"], call["status"]) == ("function_call", "completed")
        assert (call["name"], call["arguments"]) == ("get_weather", ARGUMENTS)
    assert first["call_id"] != second["call_id"] and first["id"] != second["id"]
    assert response["status"] == "completed"
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] > 0


async def test_a_response_that_was_cut_off_says_so(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [
        Say(f"<think>Hm</think>Look\n{CALL[:-30]}"),
        Finish(FinishReason.FINISH_REASON_LENGTH),
    ]
    response = await whole(gateway, tools=[WEATHER], max_output_tokens=100)
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["completed_at"] is None and response["usage"]["output_tokens"] > 0
    assert [item["status"] for item in response["output"]] == ["completed", "completed", "incomplete"]
    assert ARGUMENTS.startswith(response["output"][-1]["arguments"])


async def test_an_answer_without_text_has_no_items(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("")]
    response = await whole(gateway)
    assert (response["output"], response["status"]) == ([], "completed")


async def test_log_probabilities_belong_to_the_text(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("<think>Hm</think>é!")]
    (_, message) = (await whole(gateway, include=["message.output_text.logprobs"], top_logprobs=2))["output"]
    part = message["content"][0]
    assert b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]).decode().endswith("é!")
    assert "Hm" not in "".join(entry["token"] for entry in part["logprobs"])
    assert [rival["logprob"] for rival in part["logprobs"][-1]["top_logprobs"]] == [-0.5, -9999.0]
    (_, unscored) = (await whole(gateway, top_logprobs=2))["output"]
    assert unscored["content"][0]["logprobs"] == []


async def test_thinking_can_be_carried_by_the_client(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("<think>It is 7.</think>Seven")]
    first = await whole(gateway, include=["reasoning.encrypted_content"])
    thinking = first["output"][0]
    assert thinking["encrypted_content"]
    del thinking["content"]  # as Codex does
    await whole(gateway, input=[*first["output"], {"role": "user", "content": "Sure?"}])
    del thinking["encrypted_content"]
    await whole(gateway, input=[*first["output"], {"role": "user", "content": "Sure?"}])


async def test_effort_none_switches_thinking_off(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("ok")]
    response = await whole(gateway, reasoning={"effort": "none"})
    assert response["reasoning"]["effort"] == "none"


async def test_input_tokens_are_those_of_the_prompt(gateway, engine: TalkingEngine) -> None:
    fields = BODY | {"instructions": "Be brief.", "tools": [WEATHER], "text": {"format": {"type": "text"}}}
    counted = await gateway.http.post("/v1/responses/input_tokens", json=fields)
    assert engine.submits == []
    response = await whole(gateway, **fields)
    assert counted.json() == {
        "object": "response.input_tokens",
        "input_tokens": response["usage"]["input_tokens"],
    }


@pytest.mark.parametrize("path", ["/v1/responses/resp_1", "/v1/responses/resp_1/input_items"])
async def test_nothing_is_stored(gateway, path: str) -> None:
    for answer in (await gateway.http.get(path), await gateway.http.delete(path)):
        assert answer.status_code in (404, 405)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_aliases_are_models(engine: TalkingEngine) -> None:
    async with responses_gateway(engine, model_alias=("gpt-5.4=talking-model",)) as gateway:
        assert (await whole(gateway, model="gpt-5.4"))["model"] == "gpt-5.4"


async def test_other_ways_of_sampling_reach_the_engine(gateway, engine: TalkingEngine) -> None:
    """Fields that OpenAI's Responses API does not have, but whose users know them from chats."""
    engine.script = lambda prompt: [Say("one, two")]
    response = await whole(gateway, top_k=40, min_p=0.1, repetition_penalty=1.5, seed=7, stop=[","])
    assert response["output"][0]["content"][0]["text"] == "one"
    sampling = engine.submits[0].request.sampling
    assert (sampling.top_k, sampling.seed) == (40, 7)
    assert (round(sampling.min_p, 3), sampling.repetition_penalty) == (0.1, 1.5)
