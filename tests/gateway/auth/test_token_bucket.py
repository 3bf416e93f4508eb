"""Token buckets against exact arithmetic."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from rhizome_gateway.auth.token_bucket import TokenBucket

TICK = Fraction(1, 8)
"""Seconds; exact in floating point."""


@given(
    st.integers(1, 100_000),
    st.lists(st.tuples(st.integers(0, 2000), st.floats(0.01, 1.0)), max_size=60),
)
def test_a_request_waits_exactly_while_the_exact_bucket_has_too_little(per_minute, steps):
    bucket, now = TokenBucket(float("inf"), 0.0), Fraction(0)
    exact = Fraction(per_minute)
    for ticks, share in steps:
        now += ticks * TICK
        exact = min(Fraction(per_minute), exact + ticks * TICK * per_minute / 60)
        amount = max(1, round(share * per_minute))
        bucket.fill(per_minute, float(now))
        wait_s = bucket.wait_s(amount, per_minute)
        missing = max(Fraction(0), amount - exact)
        assert abs(wait_s - float(missing * 60 / per_minute)) < 1e-3
        if missing == 0:
            assert wait_s == 0
        if wait_s == 0:
            bucket.level -= amount
            exact -= amount
        assert 0 <= bucket.remaining <= per_minute


@given(st.integers(1, 1000), st.lists(st.integers(0, 400), max_size=200))
def test_no_window_holds_more_than_a_burst_and_its_time(per_minute, gaps):
    bucket, now, taken = TokenBucket(float("inf"), 0.0), 0.0, []
    for gap in gaps:
        now += gap / 8
        bucket.fill(per_minute, now)
        if not bucket.wait_s(1.0, per_minute):
            bucket.level -= 1.0
            taken.append(now)
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= per_minute + (taken[last] - start) * per_minute / 60 + 1e-3


@given(st.integers(1, 10**9), st.floats(0.01, 1.0), st.floats(0, 1e6))
def test_who_waits_as_long_as_they_were_told_is_let_in(per_minute, share, start):
    bucket = TokenBucket(0.0, start)
    bucket.fill(per_minute, start)
    amount = max(1, round(share * per_minute))
    bucket.fill(per_minute, start + bucket.wait_s(amount, per_minute) + 1e-3)
    assert bucket.wait_s(amount, per_minute) == 0


def test_a_clock_that_stands_still_or_goes_back_brings_nothing():
    bucket = TokenBucket(1.0, 100.0)
    bucket.fill(60, 100.0)
    bucket.fill(60, 90.0)
    assert (bucket.level, bucket.at) == (1.0, 100.0)


def test_debt_is_paid_before_anything_is_let_in():
    bucket = TokenBucket(-30.0, 0.0)
    bucket.fill(60, 20.0)
    assert bucket.remaining == 0
    assert bucket.wait_s(1, 60) == 11.0


def test_a_smaller_limit_counts_at_once():
    bucket = TokenBucket(600.0, 0.0)
    bucket.fill(6, 0.0)
    assert bucket.remaining == 6
