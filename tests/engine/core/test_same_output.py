"""The same tokens for a request whatever happens around it.

The hash runner's answer changes with any slot mixed up, any page evicted early and any wrong copy, so
equality with `expected_tokens`, which knows no pages, is the whole assertion.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome_engine.scheduler.request import FinishReason
from rhizome_testing.hash_runner import expected_tokens

SYSTEM = list(range(500, 537))
PROMPT = [*SYSTEM, 1, 2, 3, 4, 5, 6, 7]
EXPECTED = expected_tokens(PROMPT, 40)

page_sizes = pytest.mark.parametrize("page_size", [1, 16])
chunk_sizes = pytest.mark.parametrize("chunk", [1, 7, 512])


def neighbour(number):
    generator = random.Random(number)
    shared = SYSTEM[: generator.randrange(len(SYSTEM))]
    return [*shared, *(generator.randrange(1000) for _ in range(generator.randrange(1, 60)))]


@page_sizes
@chunk_sizes
def test_alone(any_harness, page_size, chunk):
    h = any_harness(num_pages=1024 // page_size, page_size=page_size, max_chunk_tokens=chunk)
    assert h.generate("a", PROMPT, 40) == EXPECTED
    assert max(max(rows) for rows in h.runner.batches) == min(chunk, len(PROMPT))


@page_sizes
@chunk_sizes
def test_with_a_tiny_step_budget(any_harness, page_size, chunk):
    h = any_harness(num_pages=1024 // page_size, page_size=page_size, max_step_tokens=chunk)
    for number in range(6):
        h.add(str(number), neighbour(number), max_tokens=12)
    assert h.generate("a", PROMPT, 40) == EXPECTED
    assert all(sum(rows) <= chunk for rows in h.runner.batches)
    assert all(h.tokens[str(n)] == expected_tokens(neighbour(n), 12) for n in range(6))


@page_sizes
@chunk_sizes
def test_in_a_batch_of_16_with_others_joining_and_leaving(any_harness, page_size, chunk):
    h = any_harness(
        num_pages=4096 // page_size,
        page_size=page_size,
        max_chunk_tokens=chunk,
        max_batch_size=16,
        max_partial_prefills=16,
    )
    for number in range(12):
        h.add(str(number), neighbour(number), max_tokens=3 + 5 * number)
    h.step()
    h.add("a", PROMPT, max_tokens=40)
    for number in range(12, 40):
        h.step()
        h.add(str(number), neighbour(number), max_tokens=1 + number % 17)
    h.finish()
    assert max(map(len, h.runner.batches)) == 16
    assert h.tokens["a"] == EXPECTED
    for number in range(40):
        name = str(number)
        assert h.tokens[name] == expected_tokens(neighbour(number), len(h.tokens[name]))


@page_sizes
@chunk_sizes
def test_with_the_prefix_cached(any_harness, page_size, chunk):
    h = any_harness(num_pages=1024 // page_size, page_size=page_size, max_chunk_tokens=chunk)
    h.generate("cold", PROMPT, 40)
    assert h.generate("warm", PROMPT, 40) == EXPECTED
    assert h.ended["warm"].usage.cached_tokens == len(PROMPT) - 1
    h.generate("other", [*SYSTEM, 1, 2, 9], 5)
    assert h.ended["other"].usage.cached_tokens == len(SYSTEM) + 2
    assert h.tokens["other"] == expected_tokens([*SYSTEM, 1, 2, 9], 5)


@page_sizes
@chunk_sizes
def test_after_its_neighbours_were_cancelled(any_harness, page_size, chunk):
    h = any_harness(num_pages=2048 // page_size, page_size=page_size, max_chunk_tokens=chunk)
    for number in range(8):
        h.add(str(number), neighbour(number), max_tokens=100)
    h.add("a", PROMPT, max_tokens=40)
    for number in range(8):
        for _ in range(2):
            h.step()
        h.core.cancel(str(number))
        h.core.check_conservation()
    h.finish()
    assert h.tokens["a"] == EXPECTED
    assert all(h.ended[str(n)].reason is FinishReason.CANCELLED for n in range(8))
    assert h.core.load().kv_pages_in_use == 0


@page_sizes
@chunk_sizes
def test_under_preemption_in_a_tiny_pool(any_harness, page_size, chunk):
    h = any_harness(num_pages=144 // page_size, page_size=page_size, max_chunk_tokens=chunk)
    h.add("a", PROMPT, max_tokens=40)
    prompts = [neighbour(number) for number in range(8)]
    for number, prompt in enumerate(prompts):
        h.add(str(number), prompt, max_tokens=40)
    h.finish()
    assert h.core.load().totals.preemptions > 0
    assert h.tokens["a"] == EXPECTED
    for number, prompt in enumerate(prompts):
        assert h.tokens[str(number)] == expected_tokens(prompt, 40)
        assert h.ended[str(number)].usage.completion_tokens == 40


requests = st.fixed_dictionaries(
    {
        "prompt_ids": st.lists(st.integers(0, 2), min_size=1, max_size=24),
        "max_tokens": st.integers(0, 20),
        "namespace": st.sampled_from("xy"),
        "tenant": st.sampled_from(["", "", "t"]),
        "priority": st.sampled_from([0, 0, 1]),
        "prompt_logprobs": st.sampled_from([None, None, 0]),
        "resumed_tokens": st.sampled_from([0, 0, 2]),
    }
)
actions = st.one_of(requests, st.sampled_from(["step", "step", "cancel", "drop", "flush", "wait"]))
configs = st.fixed_dictionaries(
    {
        "max_step_tokens": st.sampled_from([1, 3, 8, 64]),
        "max_batch_size": st.sampled_from([1, 3, 8]),
        "max_concurrent_requests": st.sampled_from([None, None, 5]),
        "max_partial_prefills": st.sampled_from([1, 2, 4]),
        "policy": st.sampled_from(["fcfs", "lpm", "priority"]),
        "fairness": st.booleans(),
        "eviction_policy": st.sampled_from(["lru", "lfu", "fifo"]),
    }
)


@settings(max_examples=300, deadline=None)
@given(
    workload=st.lists(actions, min_size=5, max_size=60),
    page_size=st.sampled_from([1, 2, 4]),
    pool_tokens=st.sampled_from([48, 64, 160]),
    config=configs,
)
def test_any_workload_keeps_its_tokens_and_conserves_pages(
    any_harness, workload, page_size, pool_tokens, config
):
    h = any_harness(num_pages=pool_tokens // page_size, page_size=page_size, **config)
    added = []
    for action in workload:
        if isinstance(action, dict):
            request = dict(action)
            if not request["resumed_tokens"] < min(len(request["prompt_ids"]), request["max_tokens"]):
                request["resumed_tokens"] = 0
            added.append(h.add(str(len(added)), peer=len(added) % 3, **request))
        elif action == "cancel" and added:
            h.core.cancel(added[len(added) // 2].request_id, added[len(added) // 2].peer)
        elif action == "drop":
            h.core.drop_peer(1)
        elif action == "flush":
            h.core.flush_cache()
        else:
            h.step(1.0 if action == "wait" else 0.0)
        h.core.check_conservation()
    h.finish()
    for request in added:
        got = h.tokens[request.request_id]
        assert got == expected_tokens(request.prompt_ids.tolist(), len(got))
        end = h.ended.get(request.request_id)
        if end is None:
            assert request.peer == 1  # dropped without events
        elif end.reason is FinishReason.LENGTH:
            assert len(got) == request.max_tokens - request.resumed_tokens
            if request.prompt_logprobs is not None:
                told = [-scores.logprob for scores in h.scores[request.request_id]]
                assert told == request.prompt_ids[1 : request.num_prompt].tolist()
    load = h.core.load()
    assert load.kv_pages_in_use == load.running_requests == load.waiting_requests == 0
    if len(h.ended) == len(added):
        h.assert_totals_agree()
