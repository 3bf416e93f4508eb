"""Retries of refused requests are bounded, and a full engine is left alone for a while."""

from __future__ import annotations

import grpc
from hypothesis import given
from hypothesis import strategies as st

from rhizome_proxy.pool import backend
from rhizome_routing.retry_budget import RetryBudget
from rhizome_transport.errors import EngineError


@given(
    st.lists(st.one_of(st.just("request"), st.just("retry"), st.floats(0.0, 5.0)), max_size=300),
    st.floats(0.0, 1.0),
    st.floats(0.0, 5.0),
)
def test_never_more_retries_than_share_rate_and_reserve(steps, share, least_per_s):
    clock = [100.0]
    budget = RetryBudget(share, least_per_s, clock=lambda: clock[0])
    requests = retries = 0
    for step in steps:
        if step == "request":
            budget.request()
            requests += 1
        elif step == "retry":
            retries += budget.take()
        else:
            clock[0] += step
    reserve = max(1.0, 10 * least_per_s)
    assert retries <= share * requests + least_per_s * (clock[0] - 100.0) + reserve + 1e-6


def test_it_refills():
    clock = [0.0]
    budget = RetryBudget(0.0, 2.0, clock=lambda: clock[0])
    assert sum(budget.take() for _ in range(100)) == 20
    clock[0] = 0.5
    assert [budget.take(), budget.take()] == [True, False]


async def test_without_budget_a_refusal_is_the_answer(cluster, script):
    engines = [await cluster.engine(script.refuse(script.full)) for _ in range(3)]
    proxy = await cluster.proxy(*engines, retry_share=0.0, min_retries_per_s=0.0)
    peer = await cluster.peer(proxy)
    for number in range(4):
        await peer.submit(f"r{number}")
        assert (await peer.error(f"r{number}")).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    # The one retry of the reserve, and none after it.
    assert sum(len(engine.submits) for engine in engines) == 5
    assert proxy.router.counts.retries_denied == 4


async def test_a_full_engine_comes_last_for_a_moment(cluster, script, monkeypatch):
    monkeypatch.setattr(backend, "_BRIEF_S", 60.0)  # ten requests may take longer than its second
    no_room = EngineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", retry_after_s=60.0)
    full, free = await cluster.engine(script.refuse(no_room)), await cluster.engine()
    peer = await cluster.peer(await cluster.proxy(full, free))
    for number in range(10):
        await peer.submit(f"r{number}")
        await peer.outcome(f"r{number}")
    assert len(full.submits) <= 1 and len(free.submits) == 10
