from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rhizome_engine.scheduler import fair_share
from rhizome_engine.scheduler.fair_share import FairShare


def charge(shares, number, cost):
    shares.charge(np.array([number], np.int64), cost)


def test_costs_add_up_by_tenant_in_bulk():
    shares = FairShare()
    a, b = shares.open("a"), shares.open("b")
    shares.charge(np.array([a, b, a], np.int64), np.array([10, 20, 30], np.int64))
    shares.charge(np.array([b, b], np.int64), 2.0)
    assert (shares.cost_served("a"), shares.cost_served("b")) == (40.0, 24.0)


def test_who_comes_back_starts_a_token_before_the_least_served_of_those_at_work():
    shares = FairShare()
    a, b = shares.open("a"), shares.open("b")
    shares.open("idle")
    shares.close("idle")
    charge(shares, a, 100)
    charge(shares, b, 70)
    shares.open("idle")
    assert shares.cost_served("idle") == 69.0


def test_leaving_and_coming_back_does_not_wipe_out_what_was_used():
    shares = FairShare()
    shares.open("modest")
    greedy = shares.open("greedy")
    charge(shares, greedy, 500)
    shares.close("greedy")
    shares.open("greedy")
    assert shares.cost_served("greedy") == 500.0 and shares.cost_served("modest") == 0.0


def test_once_nobody_has_a_request_all_are_even():
    shares = FairShare()
    shares.open("guest")
    charge(shares, shares.open("regular"), 1_000_000)
    for tenant in ("guest", "regular"):
        shares.close(tenant)
    shares.open("newcomer")
    shares.open("regular")
    assert shares.cost_served("regular") == shares.cost_served("newcomer")


def test_a_tenant_alone_is_not_ahead_of_the_next_one():
    shares = FairShare()
    charge(shares, shares.open("alone"), 10_000)
    shares.open("next")
    assert shares.cost_served("next") == shares.cost_served("alone")


def test_a_second_request_of_an_active_tenant_changes_nothing():
    shares = FairShare()
    a, b = shares.open("a"), shares.open("b")
    charge(shares, b, 50)
    assert shares.open("a") == a and shares.cost_served("a") == 0.0
    shares.close("a")
    assert shares.num_active == 2 and shares.cost_served("a") == 0.0


def test_tenants_without_number_take_no_memory(monkeypatch):
    monkeypatch.setattr(fair_share, "_REMEMBERED_TENANTS", 50)
    shares = FairShare()
    keeper = shares.open("keeper")
    for number in range(2_000):
        charge(shares, shares.open(f"tenant {number}"), 3)
        charge(shares, keeper, 1)
        shares.close(f"tenant {number}")
    assert len(shares.served) <= 64
    assert shares.cost_served("keeper") == 2_000.0


events = st.lists(st.tuples(st.integers(0, 11), st.booleans(), st.integers(0, 9)), max_size=80)


@given(events=events)
def test_counters_never_fall_and_active_tenants_have_each_their_own(events):
    shares, open_requests = FairShare(), Counter()
    with_few = fair_share._REMEMBERED_TENANTS
    fair_share._REMEMBERED_TENANTS = 4
    try:
        numbers, expected = {}, {}
        for number, opens, cost in events:
            name = str(number)
            if opens or not open_requests[name]:
                returns = not open_requests[name]
                numbers[name] = shares.open(name)
                open_requests[name] += 1
                if returns:
                    assert shares.cost_served(name) >= min(expected.values(), default=0.0) - 1.0
                expected[name] = max(expected.get(name, 0.0), shares.cost_served(name))
            else:
                shares.close(name)
                open_requests[name] -= 1
                if not open_requests[name]:
                    del expected[name], numbers[name]
            if name in numbers and len(numbers) > 1:
                charge(shares, numbers[name], cost)
                expected[name] += cost
            assert {n: shares.cost_served(n) for n in numbers} == expected
            assert len(set(numbers.values())) == len(numbers) == shares.num_active
            assert len(shares.served) == 16 and shares.served.min() >= 0.0
    finally:
        fair_share._REMEMBERED_TENANTS = with_few
