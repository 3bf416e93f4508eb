"""What holds for all policies."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome.engine.v1.generate_pb2 import GenerateRequest, TokenIds
from rhizome_routing.policies import POLICIES
from rhizome_routing.policies.ask import Ask
from rhizome_routing.policies.groups import PriorityGroups
from rhizome_transport.split_request import SplitRequest

BACKENDS = st.lists(
    st.tuples(st.integers(0, 5), st.none() | st.integers(0, 5), st.sampled_from([0.5, 1.0, 4.0])), max_size=8
)
REQUESTS = (
    None,
    Ask.of_generation(
        SplitRequest(GenerateRequest(tenant="one"), TokenIds(ids=range(600)).SerializeToString())
    ),
    Ask.of_generation(SplitRequest(GenerateRequest(text="Good morning. " * 40, cache_namespace="two"), None)),
    Ask(np.arange(900, dtype=np.uint32), affinity_key="three"),
    Ask.of_text(b"Good evening. " * 40),
)


@settings(max_examples=60, deadline=None)
@given(pool=BACKENDS, request=st.sampled_from(REQUESTS), data=st.data())
@pytest.mark.parametrize("name", POLICIES)
def test_orders_all_and_none_twice(make_backend, name, pool, request, data):
    policy = PriorityGroups(POLICIES[name](seed=1))
    backends = [make_backend(str(i), own, known, weight=w) for i, (own, known, w) in enumerate(pool)]
    for _ in range(3):
        asked = data.draw(st.permutations(backends))
        ordered = policy.order(asked, request)
        assert sorted(one.name for one in ordered) == sorted(one.name for one in backends)
        if ordered:
            policy.place(ordered[0], request)


@settings(max_examples=60, deadline=None)
@given(pool=BACKENDS, request=st.sampled_from(REQUESTS), places=st.lists(st.integers(0, 7), max_size=4))
@pytest.mark.parametrize("name", sorted(POLICIES.keys() - {"round_robin"}))
def test_an_unknown_one_is_never_first_while_one_is_known_to_be_idle(
    make_backend, name, pool, request, places
):
    policy = POLICIES[name](seed=1)
    backends = [make_backend(str(i), own, known, weight=w) for i, (own, known, w) in enumerate(pool)]
    for place in places:  # even if it has the whole prompt cached
        if place < len(backends):
            policy.place(backends[place], request).end()
    if any(one.in_flight == 0 and one.foreign_requests() == 0 for one in backends):
        assert policy.order(backends, request)[0].foreign_requests() is not None


@pytest.mark.parametrize("name", POLICIES)
async def test_the_same_seed_gives_the_same_orders(make_backend, name):
    def orders() -> list[list[str]]:
        policy = POLICIES[name](seed=5)
        pool = [make_backend(str(i), reported=0) for i in range(6)]
        return [[one.name for one in policy.order(pool, REQUESTS[i % 5])] for i in range(30)]

    assert orders() == orders()


@pytest.mark.parametrize("name", ["cost", "least_loaded", "power_of_two", "round_robin"])
async def test_a_heavier_backend_gets_as_much_more_of_a_steady_load(make_backend, name):
    policy = POLICIES[name](seed=3)
    pool = [make_backend("a", weight=1), make_backend("b", weight=1), make_backend("c", weight=2)]
    got: Counter[str] = Counter()
    open_requests = []
    draw = np.random.default_rng(0)
    for _ in range(2000):
        ask = Ask(draw.integers(0, 1000, 300, dtype=np.uint32))
        first = policy.order(pool, ask)[0]
        open_requests.append((first.lease(), policy.place(first, ask)))
        got[first.name] += 1
        if len(open_requests) > 40:
            lease, placement = open_requests.pop(0)
            lease.release()
            placement.end()
    assert got["c"] == pytest.approx(1000, rel=0.15)
    assert got["a"] == pytest.approx(500, rel=0.2)


async def test_session_keys_spread_by_weight(make_backend):
    policy = POLICIES["session"]()
    pool = [make_backend("a"), make_backend("b"), make_backend("c", weight=2)]
    nothing = np.zeros(0, np.uint32)
    got = Counter(policy.order(pool, Ask(nothing, affinity_key=str(i)))[0].name for i in range(2000))
    assert got["c"] == pytest.approx(1000, rel=0.1)


async def test_turns_of_a_heavy_backend_are_spread(make_backend):
    policy = POLICIES["round_robin"]()
    pool = [make_backend("a", weight=1), make_backend("b", weight=1), make_backend("c", weight=2)]
    turns = "".join(policy.order(pool, None)[0].name for _ in range(8))
    assert turns.count("c") == 4
    assert "ccc" not in turns


async def test_power_of_two_takes_the_less_loaded_of_the_pair(make_backend):
    policy = POLICIES["power_of_two"](seed=0)
    pool = [make_backend(str(i), i, reported=0) for i in range(1, 5)]
    first = Counter(policy.order(pool, None)[0].name for _ in range(1200))
    assert first["4"] == 0
    assert first["1"] == pytest.approx(600, rel=0.15)


async def test_a_later_group_waits_until_the_earlier_one_is_down_or_busy(make_backend):
    policy = PriorityGroups(POLICIES["least_loaded"]())
    own = [make_backend("own", 9, reported=0), make_backend("busy", reported=0, waiting=3)]
    spare = [make_backend("spare", reported=0, priority=1)]
    assert [one.name for one in policy.order(spare + own, None)] == ["own", "spare", "busy"]
    assert [one.name for one in policy.order(spare + own[1:], None)] == ["spare", "busy"]
    assert policy.name == "least_loaded"
