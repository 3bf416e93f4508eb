import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.isolation import allowance
from rhizome_engine.scheduler.step_times import StepTimes

FIXED_S, ROW_S, TOKEN_S = 1e-3, 1e-4, 2e-6


def learned(fixed_s=FIXED_S, row_s=ROW_S, token_s=TOKEN_S):
    times, random = StepTimes(), np.random.default_rng(0)
    for _ in range(400):
        rows, tokens = int(random.integers(0, 40)), int(random.integers(0, 500))
        times.note(rows, tokens, fixed_s + rows * row_s + tokens * token_s)
    return times


LEARNED = learned()


def allow(tenants, missing=None, decodes=None, times=LEARNED, **config):
    count = len(tenants)
    missing = np.ones(count, np.int64) if missing is None else np.array(missing, np.int64)
    decodes = missing == 1 if decodes is None else np.array(decodes)
    return allowance(np.array(tenants, np.int64), missing, decodes, SchedulerConfig(**config), times)


def test_the_cost_of_steps_is_learned():
    cost = LEARNED.cost()
    assert cost.fixed_s == pytest.approx(FIXED_S, rel=0.01)
    assert cost.row_s == pytest.approx(ROW_S, rel=0.01)
    assert cost.token_s == pytest.approx(TOKEN_S, rel=0.01)
    assert cost.seconds(10, 100) == pytest.approx(FIXED_S + 10 * ROW_S + 100 * TOKEN_S, rel=0.01)


def test_nothing_is_claimed_before_enough_steps():
    times = StepTimes()
    assert times.cost() is None
    for _ in range(50):
        times.note(1, 0, 2e-3)
    assert times.cost().seconds(1, 0) == pytest.approx(2e-3, rel=0.01)


@given(steps=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 8000), st.floats(0, 10)), max_size=40))
def test_no_cost_is_negative_or_undefined(steps):
    times = StepTimes()
    for rows, tokens, seconds in steps:
        times.note(rows, tokens, seconds)
    cost = times.cost()
    assert cost is None or all(np.isfinite(part) and part >= 0.0 for part in cost)


def test_the_estimate_follows_a_change():
    times = learned()
    random = np.random.default_rng(1)
    for _ in range(1500):
        rows, tokens = int(random.integers(0, 40)), int(random.integers(0, 500))
        times.note(rows, tokens, 2 * (FIXED_S + rows * ROW_S + tokens * TOKEN_S))
    assert times.cost().row_s == pytest.approx(2 * ROW_S, rel=0.05)


@pytest.mark.parametrize(
    ("tenants", "config"),
    [
        ([0] * 20, {}),  # nobody to be kept from
        ([0] * 11 + [1] * 10, {}),  # equal but for one
        ([0] * 20 + [1], {"fairness": False}),
        ([0] * 20 + [1], {"max_tenant_slowdown": None}),
        ([0] * 3 + [1], {}),  # three rows hardly cost anything
    ],
    ids=str,
)
def test_nobody_is_held_back_where(tenants, config):
    assert allow(tenants, **config) is None


def test_steps_that_hardly_take_longer_for_more_rows_hold_nobody_back():
    assert allow([0] * 40 + [1], times=learned(row_s=1e-6)) is None


def test_rows_of_the_larger_tenant_take_what_the_slowdown_leaves():
    held = allow([0] * 20 + [1], max_tenant_slowdown=1.4)
    assert held.small.tolist() == [False] * 20 + [True] and held.others == {0}
    assert held.rows == 4  # 0.4 * (1.0 + 0.1) ms


rows = st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(1, 2000)), min_size=1, max_size=40)


@given(rows=rows, slowdown=st.floats(1.0, 3.0))
def test_a_step_takes_no_longer_than_the_slowdown_and_everybody_goes_on(rows, slowdown):
    tenants = [tenant for tenant, _, _ in rows]
    decodes = [decodes for _, decodes, _ in rows]
    missing = [1 if decodes else count for _, decodes, count in rows]
    held = allow(tenants, missing, decodes, max_tenant_slowdown=slowdown)
    if held is None:
        return
    assert held.rows >= 1 or not any(d and not s for d, s in zip(decodes, held.small, strict=True))
    assert held.tokens >= 1
    small = [row for row, is_small in zip(rows, held.small, strict=True) if is_small]
    assert small and {tenant for tenant, _, _ in small}.isdisjoint(held.others)
    small_rows = sum(decodes for _, decodes, _ in small)
    small_tokens = min(sum(count for _, decodes, count in small if not decodes), 512)
    alone = FIXED_S + small_rows * ROW_S + small_tokens * TOKEN_S
    together = alone + held.rows * ROW_S + held.tokens * TOKEN_S
    # One row and one token are always allowed.
    assert together <= slowdown * alone * 1.01 + ROW_S + TOKEN_S
