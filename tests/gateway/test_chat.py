import json

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion

from rhizome.engine.v1.generate_pb2 import FinishReason
from rhizome_testing.talking_engine import Finish, Say, TalkingEngine

HI = [{"role": "user", "content": "Hi"}]


async def test_answers_the_official_client(gateway, engine: TalkingEngine) -> None:
    completion = await gateway.openai.chat.completions.create(model="talking-model", messages=HI)
    assert completion.choices[0].message.content == "Hello!"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.id.startswith("chatcmpl-")
    assert completion.system_fingerprint and completion.system_fingerprint.startswith("fp_")
    usage = completion.usage
    assert usage and (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (25, 6, 31)
    assert usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens == 3
    assert completion.model_extra and completion.model_extra["performance"] == {
        "queue_time_ms": 1.0,
        "prefill_time_ms": 20.0,
        "decode_time_ms": 100.0,
        "time_to_first_token_ms": 21.0,
        "tokens_per_second": 50.0,
    }
    ChatCompletion.model_validate(completion.model_dump(), strict=True)


async def test_required_nulls_are_there_and_others_are_not(gateway) -> None:
    choice = (await gateway.chat()).json()["choices"][0]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "Hello!", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }


async def test_the_prompt_is_the_rendered_template(gateway, engine: TalkingEngine) -> None:
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Good "}, {"type": "text", "text": "day"}]},
    ]
    assert (await gateway.chat(messages=messages)).status_code == 200
    assert engine.prompts == [
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nGood day<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ]


async def test_what_is_left_out_or_null_stays_absent(gateway, engine: TalkingEngine) -> None:
    await gateway.chat()
    optional = (
        "temperature",
        "top_p",
        "stop",
        "max_tokens",
        "seed",
        "tools",
        "n",
        "response_format",
        "stream",
    )
    await gateway.chat(
        **dict.fromkeys((*optional, "logit_bias", "stream_options", "tool_choice", "logprobs"))
    )
    assert len(engine.submits) == 2
    for submit in engine.submits:
        assert not submit.request.sampling.ListFields()
        assert not submit.request.stop.ListFields()


async def test_whole_numbers_may_be_written_with_a_fraction(gateway, engine: TalkingEngine) -> None:
    answer = await gateway.chat(max_tokens=5.0, seed=7.0, n=1.0, top_k=3.0)
    assert answer.status_code == 200
    request = engine.submits[0].request
    assert (request.stop.max_tokens, request.sampling.seed, request.sampling.top_k) == (5, 7, 3)


async def test_what_an_assistant_said_before_may_be_sent_back_as_the_sdk_dumps_it(
    gateway, engine: TalkingEngine
) -> None:
    call = {"id": None, "type": None, "function": {"name": "f", "arguments": None}}
    nothing = dict.fromkeys(("content", "refusal", "audio", "function_call", "annotations", "name"))
    answer = await gateway.chat(
        messages=[
            {"role": "assistant"} | nothing | {"tool_calls": [call]},
            {"role": "assistant"} | nothing | {"refusal": "No."},
            *HI,
        ]
    )
    assert answer.status_code == 200
    assert "assistant<|end_header_id|>\n\nNo.<|eot_id|>" in engine.prompts[0]


async def test_settings_reach_the_engine(gateway, engine: TalkingEngine) -> None:
    answer = await gateway.chat(
        temperature=0, top_p=0.5, top_k=-1, min_p=0.25, repetition_penalty=1.5, frequency_penalty=-2,
        presence_penalty=2, seed=-7, logit_bias={"65": -100}, stop_token_ids=[66], ignore_eos=True,
        min_tokens=2, max_tokens=9, max_completion_tokens=8, user="u", unknown_field={"a": 1},
    )  # fmt: skip
    assert answer.status_code == 200
    sampling, stop = engine.submits[0].request.sampling, engine.submits[0].request.stop
    assert {field.name: value for field, value in sampling.ListFields() if field.name != "logit_bias"} == {
        "temperature": 0.0, "top_p": 0.5, "top_k": 0, "min_p": 0.25, "repetition_penalty": 1.5,
        "frequency_penalty": -2.0, "presence_penalty": 2.0, "seed": -7,
    }  # fmt: skip
    assert dict(sampling.logit_bias) == {65: -100.0}
    assert (stop.max_tokens, stop.min_tokens, list(stop.token_ids), stop.ignore_eos) == (8, 2, [66], True)
    assert engine.submits[0].request.model == "talking-model"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_tokens_that_may_and_words_that_must_not_come_reach_the_engine(
    gateway, engine: TalkingEngine, path: str
) -> None:
    asked = {"messages": HI} if "chat" in path else {"prompt": "Hi"}
    for fields, allowed, bad in (
        ({"allowed_token_ids": [65, 66], "bad_words": ["b", " é", "b"]}, [65, 66], ["b", " b", "é", " é"]),
        ({"allowed_token_ids": [], "bad_words": []}, None, []),
        ({"allowed_token_ids": None, "bad_words": None}, None, []),
    ):
        body = {"model": "talking-model", "n": 2} | asked | fields
        answer = await gateway.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        assert "x-ignored-params" not in answer.headers
        for submit in engine.submits[-2:]:
            sampling = submit.request.sampling
            assert sampling.HasField("allowed_token_ids") == (allowed is not None)
            assert list(sampling.allowed_token_ids.ids) == (allowed or [])
            assert [bytes(word.ids).decode() for word in sampling.bad_token_sequences] == bad


async def test_a_stop_string_ends_the_text_and_the_request(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("one two three" * 1000)]
    answer = (await gateway.chat(stop=["th", "xyz"])).json()
    assert answer["choices"][0]["message"]["content"] == "one two "
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 10
    assert engine.cancelled == [engine.submits[0].request.request_id]
    assert not engine.submits[0].request.stop.strings


async def test_the_stop_string_is_kept_where_asked_for(gateway, engine: TalkingEngine) -> None:
    answer = (await gateway.chat(stop="ll", include_stop_str_in_output=True)).json()
    assert answer["choices"][0]["message"]["content"] == "Hell"


async def test_length_is_reported(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("abc"), Finish(FinishReason.FINISH_REASON_LENGTH)]
    assert (await gateway.chat(max_tokens=3)).json()["choices"][0]["finish_reason"] == "length"


async def test_an_answer_cut_inside_a_character_has_only_whole_ones(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("a😀".encode()[:-1]), Finish(FinishReason.FINISH_REASON_LENGTH)]
    assert (await gateway.chat()).json()["choices"][0]["message"]["content"] == "a"


async def test_several_choices_have_their_own_seeds(gateway, engine: TalkingEngine) -> None:
    completion = await gateway.openai.chat.completions.create(
        model="talking-model", messages=HI, n=3, seed=2**63 - 1
    )
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert all(choice.message.content == "Hello!" for choice in completion.choices)
    usage = completion.usage
    assert usage and (usage.prompt_tokens, usage.completion_tokens) == (25, 18)
    seeds = {submit.request.request_id[-1]: submit.request.sampling.seed for submit in engine.submits}
    assert seeds == {"0": 2**63 - 1, "1": -(2**63), "2": -(2**63) + 1}


async def test_log_probabilities_come_with_exact_bytes(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("é!")]
    completion = await gateway.openai.chat.completions.create(
        model="talking-model", messages=HI, logprobs=True, top_logprobs=2
    )
    logprobs = completion.choices[0].logprobs
    assert logprobs and logprobs.content
    assert b"".join(bytes(entry.bytes or []) for entry in logprobs.content).decode() == "é!"
    assert logprobs.content[2].token == "!"
    assert logprobs.content[2].logprob == -0.5
    assert [rival.logprob for rival in logprobs.content[2].top_logprobs] == [-0.5, -9999.0]


async def test_logprobs_without_rivals(gateway, engine: TalkingEngine) -> None:
    answer = (await gateway.chat(logprobs=True)).json()
    assert all(not entry["top_logprobs"] for entry in answer["choices"][0]["logprobs"]["content"])


async def test_request_and_trace_ids_are_in_the_headers(gateway, engine: TalkingEngine) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    answer = await gateway.http.post(
        "/v1/chat/completions",
        json={"model": "talking-model", "messages": HI},
        headers={"x-request-id": "mine-1", "traceparent": f"00-{trace_id}-b7ad6b7169203331-01"},
    )
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-trace-id"] == trace_id
    assert trace_id in engine.submits[0].trace.traceparent
    assert (await gateway.http.get("/v1/models")).headers["x-request-id"].startswith("req_")
    forged = await gateway.http.get("/v1/models", headers={"x-request-id": "a b\tc"})
    assert forged.headers["x-request-id"].startswith("req_")


async def test_tool_results_and_calls_reach_the_template(engine: TalkingEngine, start_gateway) -> None:
    config = json.loads(engine.files["tokenizer_config.json"])
    config["chat_template"] = "{{ tools | tojson }}|{{ messages | tojson }}"
    engine.files["tokenizer_config.json"] = json.dumps(config).encode()
    engine.max_context_tokens = 4096
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    nulled = [{"type": "function", "function": {"description": None, "strict": None} | tools[0]["function"]}]
    messages = [
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    async with start_gateway(engine.target) as gateway:
        await gateway.becomes_ready()
        await gateway.chat(messages=messages, tools=nulled)
        await gateway.chat(messages=messages[:1], tools=tools, tool_choice="none")
    seen, rendered = map(json.loads, engine.prompts[0].split("|"))
    assert seen == tools
    assert rendered[1]["content"] == ""
    assert rendered[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert rendered[2] == {"role": "tool", "content": "42", "tool_call_id": "c1"}
    assert engine.prompts[1].startswith("null|")


async def test_errors_of_the_sdk_are_typed(gateway) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await gateway.openai.chat.completions.create(model="gpt-0", messages=HI)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        await gateway.openai.chat.completions.create(model="talking-model", messages=HI, temperature=3)
    assert bad.value.param == "temperature"


async def test_a_response_is_json_with_its_length(gateway) -> None:
    answer: httpx.Response = await gateway.chat()
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.content)


async def test_a_cache_key_says_which_requests_belong_together(gateway, engine: TalkingEngine) -> None:
    for fields in ({"prompt_cache_key": "a"}, {"prompt_cache_key": "a", "user": "b"}, {"user": "b"}, {}):
        await gateway.chat(**fields)
    await gateway.openai.responses.create(model="talking-model", input="Hi", prompt_cache_key="a")
    first, same, by_user, without, response = (submit.request.affinity_key for submit in engine.submits)
    assert first == same == response
    assert first != by_user and without == ""
    assert len(first) == len(by_user) == 32  # a digest: it may name a person
