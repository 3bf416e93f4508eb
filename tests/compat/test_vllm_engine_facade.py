"""`Generate` of vLLM's contract by a real engine, beside our own contract."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.compat.vllm_asking import EOS, QUESTION, TOKENIZER, answers, ask, chat, complete

from rhizome.engine.v1.engine_service_pb2 import GetLoadRequest, GetModelInfoRequest
from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome_testing.text_requests import ids_of, run
from rhizome_transport.errors import from_rpc_error

vllm = pytest.importorskip("smg_grpc_proto", reason="pip install smg-grpc-proto").vllm_engine_pb2

CUT = "sampling_params.truncate_prompt_tokens"


async def until_idle(native: Any) -> None:
    deadline = time.monotonic() + 30
    while True:
        load = (await native.GetLoad(GetLoadRequest())).load
        if load.kv_pages_in_use == 0 and load.running_requests == 0:
            return
        assert time.monotonic() < deadline, load
        await asyncio.sleep(0.02)


async def test_an_answer_in_one_piece_is_what_our_own_contract_says(stub: Any, native: Any) -> None:
    prompt = chat("What is the capital of France?")
    request = GenerateRequest()
    request.token_ids.ids.extend(prompt)
    request.sampling.temperature = 0
    request.stop.max_tokens = 24
    events = await run(native, request)
    ours, finished = ids_of(events), events[-1].finished
    assert finished.stop_token_id == EOS
    answer = await complete(stub, ask(prompt))
    assert list(answer.output_ids) == [*ours, EOS]
    assert TOKENIZER.decode(list(answer.output_ids)) == "The capital of France is Paris."
    assert (answer.finish_reason, answer.index) == ("stop", 0)
    assert answer.WhichOneof("matched_stop") is None, "nobody asked to stop there"
    assert answer.prompt_tokens == len(prompt)
    assert answer.completion_tokens == finished.usage.completion_tokens == len(ours) + 1
    assert answer.cached_tokens == len(prompt) - 1, "the native request left its prompt in the cache"


async def test_a_stream_has_chunks_and_one_last_message(stub: Any) -> None:
    prompt = chat("Count from 1 to 10.")
    whole = await complete(stub, ask(prompt, max_tokens=40))
    *chunks, last = await answers(stub, ask(prompt, stream=True, max_tokens=40))
    assert len(chunks) >= 2 and all(one.HasField("chunk") for one in chunks)
    assert [i for one in chunks for i in one.chunk.token_ids] == list(whole.output_ids)
    assert sum(one.chunk.completion_tokens for one in chunks) == whole.completion_tokens
    assert {one.chunk.prompt_tokens for one in chunks} == {len(prompt)}
    assert {one.chunk.cached_tokens for one in chunks} == {len(prompt) - 1}
    assert last.complete.finish_reason == whole.finish_reason == "stop"
    assert not last.complete.output_ids and last.complete.completion_tokens == whole.completion_tokens


async def test_numbers_that_nobody_set_change_nothing(stub: Any) -> None:
    """A `top_p` or a `repetition_penalty` of 0 would be refused if it were taken as it is."""
    neutral = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, "n": 1}
    told = await complete(stub, ask(QUESTION, seed=5, ignore_eos=True, **neutral))
    unset = await complete(stub, ask(QUESTION, seed=5, ignore_eos=True, temperature=None))
    assert unset.output_ids == told.output_ids
    greedy = await complete(stub, ask(QUESTION, seed=5, ignore_eos=True, temperature=0.0))
    assert greedy.output_ids != told.output_ids, "the checkpoint's own temperature is 0, and plays no part"


async def test_without_max_tokens_the_context_window_is_filled(stub: Any, native: Any) -> None:
    info = await native.GetModelInfo(GetModelInfoRequest())
    prompt = (QUESTION * 300)[: info.max_context_tokens - 5]
    answer = await complete(stub, ask(prompt, max_tokens=None, ignore_eos=True))
    assert (answer.finish_reason, answer.completion_tokens) == ("length", 5)


async def test_several_choices_have_seeds_that_follow_each_other(stub: Any) -> None:
    wanted = {"temperature": 1.0, "ignore_eos": True, "max_tokens": 12}
    alone = [(await complete(stub, ask(QUESTION, seed=7 + i, **wanted))).output_ids for i in range(3)]
    assert alone[0] != alone[1]
    whole = await answers(stub, ask(QUESTION, seed=7, n=3, **wanted))
    together = {one.complete.index: one.complete.output_ids for one in whole}
    assert [together[index] for index in range(3)] == alone
    streamed = await answers(stub, ask(QUESTION, seed=7, n=3, stream=True, **wanted))
    for index in range(3):
        mine = [one for one in streamed if getattr(one, one.WhichOneof("response")).index == index]
        assert mine[-1].HasField("complete") and all(one.HasField("chunk") for one in mine[:-1])
        assert [i for one in mine[:-1] for i in one.chunk.token_ids] == list(alone[index])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_the_answer_and_is_named(stub: Any, stream: bool) -> None:
    prompt = chat("What is the capital of France?")
    *_, last = await answers(stub, ask(prompt, stream=stream, stop=["of France", "nowhere"]))
    assert (last.complete.finish_reason, last.complete.matched_stop_str) == ("stop", "of France")
    if not stream:
        text = TOKENIZER.decode(list(last.complete.output_ids))
        assert text.endswith("of France") and last.complete.completion_tokens == len(last.complete.output_ids)


async def test_a_stop_token_is_named_where_it_was_asked_for(stub: Any) -> None:
    prompt = chat("What is the capital of France?")
    plain = await complete(stub, ask(prompt))
    third = plain.output_ids[2]
    answer = await complete(stub, ask(prompt, stop_token_ids=[third]))
    assert list(answer.output_ids) == list(plain.output_ids[:3])
    assert (answer.finish_reason, answer.matched_token_id) == ("stop", third)


async def test_log_probabilities_of_output_and_prompt(stub: Any, native: Any) -> None:
    prompt = chat("What is the capital of Spain?")
    request = GenerateRequest(prompt_logprobs=2)
    request.token_ids.ids.extend(prompt)
    request.sampling.temperature = 0
    request.sampling.top_logprobs = 3
    request.stop.max_tokens = 6
    events = await run(native, request)
    ours = [one for event in events for one in event.delta.logprobs]
    scores = [one for event in events for one in event.prompt_logprobs.logprobs]
    wanted = {"logprobs": 3, "prompt_logprobs": 2, "max_tokens": 6}
    whole = await complete(stub, ask(prompt, **wanted))
    *chunks, last = await answers(stub, ask(prompt, stream=True, **wanted))
    assert not last.complete.HasField("input_logprobs")
    for out, scored in (
        ([whole.output_logprobs], whole.input_logprobs),
        ([one.chunk.output_logprobs for one in chunks], chunks[0].chunk.input_logprobs),
    ):
        assert [i for one in out for i in one.token_ids] == list(whole.output_ids)
        values = [value for one in out for value in one.token_logprobs]
        assert values == pytest.approx([one.logprob for one in ours])
        tops = [list(top.token_ids) for one in out for top in one.top_logprobs]
        assert tops == [[top.token_id for top in one.top] for one in ours]
        assert list(scored.token_ids) == prompt and not scored.token_logprobs[0].HasField("value")
        assert [one.value for one in scored.token_logprobs][1:] == pytest.approx(
            [one.logprob for one in scores], abs=1e-4
        )
        assert [len(top.token_ids) for top in scored.top_logprobs] == [0] + [2] * (len(prompt) - 1)
    assert not any(one.chunk.HasField("input_logprobs") for one in chunks[1:])


@pytest.mark.parametrize(
    ("constraint", "holds"),
    [
        (
            {
                "json_schema": '{"type": "object", "properties": {"a": {"type": "integer"}},'
                ' "required": ["a"], "additionalProperties": false}'
            },
            lambda text: isinstance(json.loads(text)["a"], int),
        ),
        ({"regex": "[a-c]{4}"}, lambda text: len(text) == 4 and set(text) <= set("abc")),
        ({"choice": vllm.ChoiceConstraint(choices=["red", "green"])}, lambda text: text in ("red", "green")),
        ({"grammar": 'start: "yes" | "no"'}, lambda text: text in ("yes", "no")),
    ],
)
async def test_output_conforms_to_what_it_must(
    stub: Any, constraint: dict[str, Any], holds: Callable[[str], bool]
) -> None:
    answer = await complete(stub, ask(chat("Hello"), max_tokens=60, **constraint))
    assert answer.finish_reason == "stop"
    assert holds(TOKENIZER.decode(list(answer.output_ids)))


async def test_text_is_tokenised_here_and_long_prompts_are_cut_where_wanted(stub: Any) -> None:
    text = "one two three four five six seven eight nine ten"
    ids = TOKENIZER.encode(text, True)
    request = vllm.GenerateRequest(text=text)
    request.sampling_params.CopyFrom(vllm.SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True))
    whole = await complete(stub, request)
    assert whole.prompt_tokens == len(ids)
    assert whole.output_ids == (await complete(stub, ask(ids, max_tokens=4, ignore_eos=True))).output_ids
    request.sampling_params.truncate_prompt_tokens = 5
    cut = await complete(stub, request)
    assert cut.prompt_tokens == 5
    assert cut.output_ids == (await complete(stub, ask(ids[-5:], max_tokens=4, ignore_eos=True))).output_ids
    endless = ask(QUESTION * 600, max_tokens=8, ignore_eos=True, truncate_prompt_tokens=-1)
    answer = await complete(stub, endless)
    assert answer.completion_tokens == 8 and answer.prompt_tokens + 8 == 2048


def _without_input() -> Any:
    return vllm.GenerateRequest(sampling_params=vllm.SamplingParams(max_tokens=1))


def _with_image() -> Any:
    request = ask(QUESTION)
    request.mm_inputs.im_token_id = 3
    return request


def _elsewhere() -> Any:
    request = ask(QUESTION)
    request.kv_transfer_params.remote_host = "other"
    return request


def _rank() -> Any:
    request = ask(QUESTION)
    request.data_parallel_rank = 3
    return request


@pytest.mark.parametrize(
    ("request_", "code", "param"),
    [
        (_without_input(), "INVALID_ARGUMENT", "input"),
        (_with_image(), "INVALID_ARGUMENT", "mm_inputs"),
        (_elsewhere(), "UNIMPLEMENTED", "kv_transfer_params"),
        (_rank(), "INVALID_ARGUMENT", "data_parallel_rank"),
        (ask(QUESTION, max_tokens=0), "INVALID_ARGUMENT", "sampling_params.max_tokens"),
        (ask(QUESTION, n=1000), "INVALID_ARGUMENT", "sampling_params.n"),
        (ask(QUESTION, logprobs=-1), "INVALID_ARGUMENT", "sampling_params.logprobs"),
        (ask(QUESTION, structural_tag="{}"), "INVALID_ARGUMENT", "sampling_params.structural_tag"),
        (
            ask(QUESTION, truncate_prompt_tokens=0),
            "INVALID_ARGUMENT",
            "sampling_params.truncate_prompt_tokens",
        ),
        (ask(QUESTION, logit_bias={-1: 2.0}), "INVALID_ARGUMENT", "sampling_params.logit_bias"),
        # These the core refuses, as it would in our own contract.
        (ask([*QUESTION, 100_000]), "INVALID_ARGUMENT", "prompt"),
        (ask([]), "INVALID_ARGUMENT", "prompt"),
        (ask(QUESTION, temperature=-1.0), "INVALID_ARGUMENT", "sampling.temperature"),
        (ask(QUESTION, json_schema="{"), "INVALID_ARGUMENT", "grammar.json_schema"),
        (ask(QUESTION * 600), "INVALID_ARGUMENT", "prompt"),
    ],
)
async def test_what_cannot_be_served_is_refused_with_a_reason(
    stub: Any, request_: Any, code: str, param: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answers(stub, request_)
    error = from_rpc_error(caught.value)
    assert (error.code.name, error.param) == (code, param), error.message
    assert len(error.message) > 15


async def test_abort_ends_a_request_and_frees_its_pages(stub: Any, native: Any) -> None:
    call = stub.Generate(ask(QUESTION, stream=True, request_id="long", n=2, max_tokens=1500, ignore_eos=True))
    async with asyncio.timeout(60):
        await call.read()
        await stub.Abort(vllm.AbortRequest(request_ids=["long", "unknown"]))
        rest = []
        while (one := await call.read()) is not grpc.aio.EOF:
            rest.append(one)
    assert [one.complete.finish_reason for one in rest if one.HasField("complete")] == ["abort", "abort"]
    await until_idle(native)


async def test_a_caller_that_goes_away_frees_its_pages(stub: Any, native: Any) -> None:
    call = stub.Generate(ask(QUESTION, stream=True, n=2, max_tokens=1500, ignore_eos=True))
    await call.read()
    before = (await native.GetLoad(GetLoadRequest())).load
    assert before.running_requests == 2
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call.read()
    await until_idle(native)
    totals = (await native.GetLoad(GetLoadRequest())).load.totals
    assert totals.aborted >= before.totals.aborted + 2
