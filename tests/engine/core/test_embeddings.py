"""Vectors from prompts: of every token once, whatever happens to the request, and counted like any other."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome_engine.core.events import FailedEvent
from rhizome_engine.embedding.pooling import EmbeddingParams, Pooling
from rhizome_engine.scheduler.request import FinishReason, Request
from rhizome_testing.hash_runner import expected_embedding, expected_tokens
from rhizome_transport.errors import EngineError

PROMPT = list(range(10, 20))
LONG = [(7 * place) % 1000 for place in range(200)]
RAW_MEAN = EmbeddingParams(Pooling.MEAN, normalize=False)
LAST = EmbeddingParams(Pooling.LAST_TOKEN)
EVERY_WAY = [EmbeddingParams(pooling, normalize) for pooling in Pooling for normalize in (True, False)]


def distinct(number, count):
    return [(number * 31 + place * (number + 3)) % 1000 for place in range(count)]


def embed(h, name, prompt, params=RAW_MEAN, **fields):
    return h.add(name, prompt, embedding=params, **fields)


def inputs(prompts, params=RAW_MEAN, peer="call", **fields):
    return [Request(str(i), p, embedding=params, peer=peer, **fields) for i, p in enumerate(prompts)]


def assert_vector(h, name, prompt, params=RAW_MEAN):
    assert h.vectors[name] == pytest.approx(expected_embedding(prompt, params), rel=1e-6)
    assert h.ended[name].reason is FinishReason.STOP and h.tokens[name] == []


@pytest.mark.parametrize("params", EVERY_WAY)
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_in_chunks(any_harness, params, chunk):
    h = any_harness(max_step_tokens=chunk)
    embed(h, "a", LONG, params)
    h.finish()
    assert_vector(h, "a", LONG, params)
    usage = h.ended["a"].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (200, 0, 0)
    h.assert_totals_agree()


@pytest.mark.parametrize("params", EVERY_WAY)
def test_with_the_prefix_cached(any_harness, params):
    h = any_harness(max_step_tokens=16)
    h.generate("warm", LONG[:90], 3)
    embed(h, "a", LONG, params)
    h.finish()
    assert_vector(h, "a", LONG, params)
    assert h.ended["a"].usage.cached_tokens == (90 if params.pooling is Pooling.LAST_TOKEN else 0)


def test_an_input_that_is_cached_whole_still_computes_its_last_token(harness):
    h = harness()
    for name in "ab":
        embed(h, name, PROMPT, LAST)
        h.finish()
        assert_vector(h, name, PROMPT, LAST)
    assert h.ended["b"].usage.cached_tokens == 8


@pytest.mark.parametrize("params", EVERY_WAY)
def test_only_what_can_be_found_again_stays_in_the_cache(harness, params):
    h = harness()
    embed(h, "a", LONG, params)
    h.finish()
    cached = h.core.load().kv_pages_cached
    assert cached == (50 if params.pooling is Pooling.LAST_TOKEN else 0)


def test_inputs_with_one_beginning_wait_for_it_only_where_that_helps(any_harness):
    h = any_harness(num_pages=200, max_step_tokens=64)
    for name in "abc":
        embed(h, name, [*LONG, ord(name)], LAST)
    for name in "xyz":
        embed(h, name, [*LONG, ord(name)])
    h.finish()
    for name in "abc":
        assert_vector(h, name, [*LONG, ord(name)], LAST)
    for name in "xyz":
        assert_vector(h, name, [*LONG, ord(name)])
    assert [h.ended[name].usage.cached_tokens for name in "abcxyz"] == [0, 200, 200, 0, 0, 0]


def test_beside_requests_that_generate(any_harness):
    h = any_harness(max_step_tokens=12, num_pages=200)
    for number in range(3):
        h.add(f"text {number}", distinct(number, 30), max_tokens=20)
        embed(h, f"vector {number}", distinct(number + 50, 40 + number))
    h.finish()
    for number in range(3):
        assert h.tokens[f"text {number}"] == expected_tokens(distinct(number, 30), 20)
        assert_vector(h, f"vector {number}", distinct(number + 50, 40 + number))


@pytest.mark.parametrize("params", EVERY_WAY)
def test_through_preemption(any_harness, params):
    h = any_harness(num_pages=20, page_size=4, max_step_tokens=12)
    prompts = {str(number): distinct(number, 30) for number in range(4)}
    for number, prompt in enumerate(prompts.values()):
        h.add(f"text {number}", prompt, max_tokens=24)
        embed(h, str(number), prompt, params)
    h.finish(max_steps=900)
    assert h.core.load().totals.preemptions > 0
    for name, prompt in prompts.items():
        assert_vector(h, name, prompt, params)
    h.assert_totals_agree()


def test_many_short_inputs_fill_a_step(harness):
    h = harness(max_batch_size=32, max_step_tokens=64, max_partial_prefills=2)
    for number in range(16):
        embed(h, str(number), distinct(number, 4))
    h.finish()
    assert [sum(rows) for rows in h.runner.batches] == [64]


def test_a_long_input_holds_up_nobody_who_generates(harness):
    h = harness(max_step_tokens=8)
    h.add("text", PROMPT[:3], max_tokens=10)
    h.step()
    embed(h, "long", LONG)
    before = len(h.tokens["text"])
    for step in range(1, 6):
        h.step()
        assert len(h.tokens["text"]) == before + step


def test_small_tenants_inputs_are_not_behind_a_large_ones(harness):
    h = harness(max_step_tokens=32, max_batch_size=4, max_queue_size=100, num_pages=400)
    for number in range(40):
        embed(h, f"large {number}", distinct(number, 32), tenant="large")
    h.step()
    embed(h, "small", distinct(99, 32), tenant="small")
    for _ in range(6):
        h.step()
    assert "small" in h.ended and len(h.ended) < 10
    h.finish()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ([5, 1000], "token id 1000"),
        ([1] * 17, r"17 tokens, but the context window is 16 tokens"),
    ],
)
def test_what_cannot_be_embedded_is_refused(harness, prompt, message):
    h = harness(max_context_tokens=16)
    with pytest.raises(EngineError, match=message) as error:
        embed(h, "a", prompt)
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT
    embed(h, "whole window", [1] * 16)
    h.finish()
    assert_vector(h, "whole window", [1] * 16)


def test_one_wrong_input_refuses_the_whole_call_by_its_index(harness):
    h = harness(max_context_tokens=16)
    with pytest.raises(EngineError, match=r"^inputs\[2\]: the prompt has 17 tokens") as error:
        h.core.add_together(inputs([PROMPT, PROMPT, [1] * 17, []]))
    assert (error.value.param, error.value.reason) == ("inputs[2]", "CONTEXT_LENGTH_EXCEEDED")
    assert not h.core.has_work and h.core.load().totals.received == 0


def test_a_call_larger_than_the_queue_leaves_half_of_it_to_others(harness):
    h = harness(max_batch_size=2, max_queue_size=8, max_step_tokens=8, page_size=4)
    prompts = [distinct(number, 8) for number in range(50)]
    h.core.add_together(inputs(prompts))
    assert h.core.load().waiting_requests == 50 and h.core.load().waiting_tokens == 400
    h.step()
    for number in range(4):
        h.add(f"other {number}", PROMPT, max_tokens=1)
    with pytest.raises(EngineError, match="busy"):
        for number in range(4, 7):
            h.add(f"other {number}", PROMPT, max_tokens=1)
    h.finish()
    for number, prompt in enumerate(prompts):
        assert_vector(h, str(number), prompt)
    h.assert_totals_agree()


def test_a_full_queue_refuses_a_call_as_one(harness):
    h = harness(max_queue_size=2, max_batch_size=1)
    for name in "abc":
        h.add(name, PROMPT, max_tokens=2)
    with pytest.raises(EngineError, match="busy") as error:
        h.core.add_together(inputs([PROMPT] * 10))
    assert error.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.value.retry_after_s > 0
    assert h.core.load().totals.refused == 1
    h.finish()
    assert set(h.ended) == set("abc")


def test_calls_go_on_beside_each_other_in_a_full_queue(harness):
    h = harness(max_batch_size=1, max_queue_size=4, max_step_tokens=8)
    for call in ("one", "two"):
        h.core.add_together(
            [Request(f"{call} {i}", distinct(i, 8), embedding=RAW_MEAN, peer=call) for i in range(10)]
        )
    h.finish()
    done = [name.split()[0] for name in h.ended]
    shared = done[done.index("two") : done.index("two") + 12]
    assert abs(shared.count("one") - shared.count("two")) <= 2
    assert len(h.vectors) == 20


@pytest.mark.parametrize("overlap", [False, True])
def test_cancelling_a_call_frees_everything_it_had(harness, overlap):
    h = harness(max_batch_size=2, max_queue_size=4, max_step_tokens=8, overlap=overlap)
    h.core.add_together(inputs([distinct(number, 30) for number in range(20)]))
    h.step()
    h.step()
    assert h.core.load().kv_pages_in_use > 0
    assert len(h.core.drop_peer("call")) == 20
    h.core.check_conservation()
    load = h.core.load()
    assert (load.kv_pages_in_use, load.waiting_requests, load.running_requests) == (0, 0, 0)
    assert load.totals.aborted == 20
    h.finish()
    embed(h, "next", PROMPT)
    h.finish()
    assert_vector(h, "next", PROMPT)


def test_a_held_back_input_can_be_cancelled_alone(harness):
    h = harness(max_batch_size=1, max_queue_size=2, max_step_tokens=8)
    h.core.add_together(inputs([distinct(number, 8) for number in range(6)]))
    assert h.core.cancel("5", "call")
    h.finish()
    assert h.ended["5"].reason is FinishReason.CANCELLED and len(h.vectors) == 5
    h.assert_totals_agree()


def test_a_calls_deadline_ends_all_of_it_wherever_it_is(harness):
    h = harness(max_batch_size=1, max_queue_size=2, max_step_tokens=8)
    h.core.add_together(inputs([distinct(number, 24) for number in range(6)], deadline=h.clock.now + 2))
    h.step(1.0)
    h.step(1.0)
    assert len(h.ended) == 6 and not h.core.has_work
    for end in h.ended.values():
        assert isinstance(end, FailedEvent) and end.error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert h.core.load().totals.expired == 6
    h.assert_totals_agree()


def test_a_failed_step_ends_what_it_computed(harness, caplog):
    h = harness(max_step_tokens=8)
    embed(h, "a", LONG)
    h.step()
    h.runner.fail_next = 1
    h.finish()
    assert h.ended["a"].error.code is grpc.StatusCode.INTERNAL and "a" not in h.vectors
    embed(h, "b", PROMPT)
    h.finish()
    assert_vector(h, "b", PROMPT)


def test_numbers_that_are_none_fail_the_request(harness, monkeypatch):
    h = harness()
    monkeypatch.setattr(h.runner, "_pool", lambda batch, row: np.array([1.0, np.nan], np.float32))
    embed(h, "a", PROMPT)
    h.finish()
    assert "hidden states are no numbers" in h.ended["a"].error.message and "a" not in h.vectors
    h.assert_totals_agree()


prompts = st.lists(st.integers(0, 3), min_size=1, max_size=40)
jobs = st.lists(
    st.tuples(
        prompts,
        st.one_of(st.none(), st.sampled_from(EVERY_WAY)),
        st.sampled_from(["", "other"]),
        st.integers(0, 30),  # cancelled after so many steps
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(
    jobs=jobs,
    grouped=st.booleans(),
    overlap=st.booleans(),
    chunk=st.integers(1, 40),
    num_pages=st.integers(15, 60),
)
def test_any_mixture_is_exact_and_adds_up(harness, jobs, grouped, overlap, chunk, num_pages):
    h = harness(
        num_pages=num_pages,
        page_size=4,
        max_step_tokens=chunk,
        max_batch_size=4,
        max_queue_size=20,
        overlap=overlap,
    )
    together = []
    for number, (prompt, params, tenant, _) in enumerate(jobs):
        if params is None:
            h.add(str(number), prompt, max_tokens=6, tenant=tenant)
        elif grouped:
            together.append(Request(str(number), prompt, embedding=params, tenant=tenant))
        else:
            embed(h, str(number), prompt, params, tenant=tenant)
    if together:
        h.core.add_together(together)
    for step in range(31):
        for number, (*_, cancelled) in enumerate(jobs):
            if cancelled == step and number % 3 == 0:
                h.core.cancel(str(number))
        h.step()
    h.finish()
    for number, (prompt, params, _, _) in enumerate(jobs):
        if h.ended[str(number)].reason is FinishReason.CANCELLED:
            continue
        if params is None:
            assert h.tokens[str(number)] == expected_tokens(prompt, 6)
        else:
            assert_vector(h, str(number), prompt, params)
    h.assert_totals_agree()
    assert h.core.load().kv_pages_in_use == 0
