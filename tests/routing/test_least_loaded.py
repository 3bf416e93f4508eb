"""The least-loaded policy."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome.engine.v1.load_pb2 import Load
from rhizome_backends.spec import BackendSpec
from rhizome_proxy.pool.backend import Backend, BackendRules
from rhizome_routing.policies.least_loaded import LeastLoaded


def backend(name: str, in_flight: int = 0, reported: int | None = None, own: int = 0) -> Backend:
    """A backend with that many own requests, and a report of that many in all of which `own` are ours."""
    made = Backend(BackendSpec(f"{name}:1", name), None)
    for _ in range(in_flight):
        made.lease()
    if reported is not None:
        made.observe_load(Load(running_requests=reported, waiting_requests=0), own)
    return made


def names(backends: list[Backend]) -> str:
    return "".join(one.name for one in LeastLoaded().order(backends, None))


async def test_prefers_the_idle_one():
    assert names([backend("a", 2), backend("b", 0), backend("c", 1)]) == "bca"


async def test_counts_what_others_have_open_there():
    assert names([backend("a", 0, reported=5), backend("b", 2, reported=2, own=2)]) == "ba"


async def test_a_report_does_not_count_our_own_requests_twice():
    assert names([backend("a", 4, reported=4, own=4), backend("b", 5, reported=0, own=0)]) == "ab"


async def test_a_burst_between_two_reports_spreads():
    pool = [backend(name, reported=0) for name in "abcd"]
    for _ in range(40):
        LeastLoaded().order(pool, None)[0].lease()
    assert [one.in_flight for one in pool] == [10] * 4


async def test_unknown_is_never_idle():
    assert names([backend("unknown"), backend("b", reported=0)]) == "bunknown"
    assert names([backend("unknown"), backend("b", 1, reported=1, own=1), backend("c", reported=3)])[0] == "b"


@pytest.mark.parametrize("field", ["running_requests", "waiting_requests"])
async def test_half_a_report_is_unknown(field):
    half = backend("half")
    half.observe_load(Load(**{field: 0}))
    assert half.foreign_requests() is None


async def test_an_old_report_is_unknown():
    old = backend("old", reported=0)
    assert old.foreign_requests() == 0
    old.rules = BackendRules(load_max_age_s=0.0)
    assert old.foreign_requests() is None


async def test_ties_spread_by_chance():
    pool = [backend(name) for name in "abc"]
    first = Counter(LeastLoaded().order(pool, None)[0].name for _ in range(600))
    assert set(first) == set("abc")
    assert min(first.values()) > 120


@settings(max_examples=100, deadline=None)
@given(loads=st.lists(st.tuples(st.integers(0, 9), st.one_of(st.none(), st.integers(0, 9))), max_size=8))
def test_orders_all_and_never_an_unknown_before_one_known_to_be_no_busier(loads):
    pool = [backend(str(i), own, others) for i, (own, others) in enumerate(loads)]
    ordered = LeastLoaded().order(pool, None)
    assert sorted(one.name for one in ordered) == sorted(one.name for one in pool)
    known = [one.in_flight + (one.foreign_requests() or 0) for one in ordered if one.report is not None]
    assert known == sorted(known)
    for position, one in enumerate(ordered):
        if one.report is None:
            assert all(
                later.report is None or later.in_flight + (later.foreign_requests() or 0) > one.in_flight
                for later in ordered[position + 1 :]
            )
