"""The cost policy."""

from __future__ import annotations

import numpy as np
import pytest

from rhizome.engine.v1.generate_pb2 import GenerateRequest, TokenIds
from rhizome.engine.v1.load_pb2 import Load
from rhizome_routing.policies.ask import Ask
from rhizome_routing.policies.cost import Cost
from rhizome_transport.split_request import SplitRequest

DRAW = np.random.default_rng(0)


def prompt(tokens: int) -> np.ndarray:
    return DRAW.integers(0, 128_000, tokens, dtype=np.uint32)


def first(policy, pool, request) -> str:
    return policy.order(pool, request)[0].name


@pytest.fixture
def pool(make_backend):
    return [make_backend(name, reported=0, page_size=16, kv_pages_total=4096) for name in "abcdefgh"]


async def test_a_prompt_returns_to_where_its_prefix_is(pool):
    policy, ids = Cost(), prompt(4000)
    policy.order(pool, None)
    for holder in pool:
        start = prompt(2000)
        policy.place(holder, Ask(start)).end()
        assert first(policy, pool, Ask(np.concatenate([start, ids]))) == holder.name


async def test_a_conversation_as_text_returns_too(pool):
    policy = Cost()
    turns = b'[{"role":"user","content":"' + b"Tell me more about rivers. " * 60
    holder = first(policy, pool, Ask.of_text(turns))
    policy.place(next(one for one in pool if one.name == holder), Ask.of_text(turns)).end()
    longer = turns + b'"},{"role":"assistant","content":"Which one?"}]'
    assert {first(policy, pool, Ask.of_text(longer)) for _ in range(20)} == {holder}


async def test_namespaces_share_nothing(pool):
    policy, ids = Cost(seed=1), prompt(4000)
    policy.place(pool[3], Ask(ids, namespace="one")).end()
    assert {first(policy, pool, Ask(ids, namespace="two")) for _ in range(60)} == set("abcdefgh")


async def test_of_two_that_seem_as_busy_the_known_one_is_first(make_backend):
    policy = Cost()
    pool = [make_backend("silent"), make_backend("known", reported=3)]  # unknown counts as the busiest known
    assert {first(policy, pool, request) for request in [None, Ask(prompt(64))] * 20} == {"known"}


async def test_equal_costs_are_dealt_by_chance_whatever_the_weight(make_backend):
    for weight in (1e-9, 1.0, 1e9):
        policy = Cost(seed=4)
        pool = [make_backend(name, reported=1, weight=weight) for name in "abc"]
        assert {first(policy, pool, None) for _ in range(60)} == set("abc")


async def test_a_busy_holder_loses_to_an_idle_stranger(pool):
    policy, ids = Cost(), prompt(3072)
    policy.place(pool[0], Ask(ids)).end()
    while first(policy, pool, Ask(ids)) == "a":
        pool[0].lease()
    assert 3 <= pool[0].in_flight <= 5  # 3,072 tokens at 768 a request


async def test_a_burst_of_new_prompts_spreads(pool):
    policy = Cost()
    for _ in range(80):
        ids = TokenIds(ids=prompt(700).tolist()).SerializeToString()
        ask = Ask.of_generation(SplitRequest(GenerateRequest(), ids))
        best = policy.order(pool, ask)[0]
        best.lease()
        policy.place(best, ask)
    assert [one.in_flight for one in pool] == [10] * 8


async def test_tokens_that_others_hold_count(pool):
    policy = Cost()
    pool[0].observe_load(
        Load(running_requests=1, waiting_requests=0, page_size=16, kv_pages_in_use=4000), own=0
    )
    pool[1].observe_load(Load(running_requests=1, waiting_requests=0, page_size=16, kv_pages_in_use=1), own=0)
    assert [one.name for one in policy.order(pool, None)][-2:] == ["b", "a"]


async def test_what_ended_no_longer_counts(pool):
    policy = Cost()
    placements = [policy.place(pool[0], Ask(prompt(100_000))) for _ in range(3)]
    assert policy.order(pool, None)[-1].name == "a"
    for placement in placements:
        placement.end()
        placement.end()
    assert {first(policy, pool, None) for _ in range(100)} == set("abcdefgh")


async def test_a_restarted_backend_has_an_empty_cache(pool):
    policy, ids = Cost(seed=2), prompt(4000)
    pool[0].observe_load(Load(instance_id="1", running_requests=0, waiting_requests=0))
    policy.order(pool, None)
    policy.place(pool[0], Ask(ids)).end()
    assert first(policy, pool, Ask(ids)) == "a"
    pool[0].observe_load(Load(instance_id="2", running_requests=0, waiting_requests=0))
    assert {first(policy, pool, Ask(ids)) for _ in range(60)} == set("abcdefgh")


async def test_a_backend_that_left_is_forgotten(pool):
    policy, ids = Cost(seed=2), prompt(4000)
    policy.place(pool[0], Ask(ids)).end()
    policy.retain([one.name for one in pool[1:]])
    assert len(policy.index) == 0
    assert {first(policy, pool, Ask(ids)) for _ in range(60)} == set("abcdefgh")


async def test_backends_with_other_block_sizes_compete_in_tokens(make_backend):
    pages = {"small": 16, "large": 128}
    pool = [
        make_backend(name, reported=0, page_size=size, kv_pages_total=9000) for name, size in pages.items()
    ]
    policy, ids = Cost(), prompt(6000)
    policy.order(pool, None)
    policy.place(pool[0], Ask(ids[:2000])).end()
    policy.place(pool[1], Ask(ids[:4000])).end()
    assert first(policy, pool, Ask(ids)) == "large"
    policy.place(pool[0], Ask(ids)).end()
    assert first(policy, pool, Ask(ids)) == "small"
