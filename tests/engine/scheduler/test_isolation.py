"""A small tenant's steps take a bounded multiple of what they would take alone, and the others go on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.isolation import TenantIsolation

SLOWDOWN = 1.3


def isolation(**config):
    return TenantIsolation(SchedulerConfig(max_tenant_slowdown=SLOWDOWN, **config))


def rows(*tenants, prompts=()):
    """Arrays of decoding rows, and of rows with so many prompt tokens to compute, as (tenant, tokens)."""
    numbers = [*tenants, *(tenant for tenant, _ in prompts)]
    missing = [1] * len(tenants) + [tokens for _, tokens in prompts]
    decodes = [True] * len(tenants) + [False] * len(prompts)
    return np.array(numbers, np.int64), np.array(missing, np.int64), np.array(decodes)


def serve(keeper, seconds_of, steps, others=31, small=1):
    """Decode steps of a small tenant (1) beside a large one (0): times, and whether both were in them."""
    work = rows(*[0] * others, *[1] * small)
    times, together = [], []
    for _ in range(steps):
        turn = keeper.choose(*work)
        both = turn is None or turn.together
        seconds = seconds_of(small + others if both else small)
        keeper.note(turn, 0, seconds)
        times.append(seconds)
        together.append(both)
    return times, together


@pytest.mark.parametrize("row_ms", [0.05, 0.2, 1.0, 5.0])
@pytest.mark.parametrize("jump_ms", [0.0, 3.0])
def test_the_small_tenants_steps_take_the_slowdown_on_average(row_ms, jump_ms):
    def seconds_of(count):
        return (2.0 + row_ms * (count - 1) + jump_ms * (count > 1)) / 1e3

    times, together = serve(isolation(), seconds_of, 4000)
    assert np.mean(times) <= (SLOWDOWN + 0.05) * seconds_of(1)
    # Whatever they may cost is spent: the others are not held back for more than that.
    assert np.mean(times) >= (SLOWDOWN - 0.1) * seconds_of(1) or np.mean(together) > 0.95
    assert sum(together) >= 5


def test_the_others_come_too_late_rather_than_never():
    _, together = serve(isolation(), lambda count: 1e-3 if count == 1 else 1.0, 4000)
    gaps = np.diff(np.flatnonzero(together))
    assert len(gaps) > 10 and gaps.max() <= 100 / (SLOWDOWN - 1) + 2


def test_where_rows_cost_next_to_nothing_nobody_is_held_back():
    _, together = serve(isolation(), lambda count: (1000 + 2 * count) / 1e6, 1000)
    assert sum(not both for both in together) <= 1 + 1000 // 64


def test_a_single_slow_step_changes_little():
    def seconds_of(count):
        return (2.0 + 0.2 * count) / 1e3

    keeper = isolation()
    serve(keeper, seconds_of, 100)
    serve(keeper, lambda count: 60.0, 1)
    times, together = serve(keeper, seconds_of, 200)
    assert np.mean(times) <= (SLOWDOWN + 0.05) * seconds_of(1)
    assert sum(together) >= 10


def test_the_account_follows_contexts_that_grow():
    keeper = isolation()
    for growth in (1.0, 3.0, 9.0):

        def seconds_of(count, growth=growth):
            return growth * (2.0 + 0.2 * count) / 1e3

        serve(keeper, seconds_of, 60)
        times, _ = serve(keeper, seconds_of, 200)
        assert np.mean(times) <= (SLOWDOWN + 0.1) * seconds_of(1)


@pytest.mark.parametrize(
    ("work", "config"),
    [
        (rows(0, 0, 0), {}),
        (rows(0, 1), {}),
        (rows(0, 0, 1), {}),
        (rows(0, 0, 0, 1, 1), {}),
        (rows(0, 0, 0, 1), {"fairness": False}),
    ],
)
def test_about_equal_tenants_are_left_alone(work, config):
    assert isolation(**config).choose(*work) is None


def test_without_a_bound_nobody_is_held_back():
    assert TenantIsolation(SchedulerConfig(max_tenant_slowdown=None)).choose(*rows(0, 0, 0, 1)) is None
    with pytest.raises(ValueError, match=r"max_tenant_slowdown must be at least 1, not 0\.5"):
        SchedulerConfig(max_tenant_slowdown=0.5)


def test_prompts_of_larger_tenants_come_in_small_pieces():
    keeper = isolation()
    decoding = rows(*[0] * 8, 1)
    keeper.note(None, 512, 0.512)  # a millisecond per prompt token
    keeper.note(keeper.choose(*decoding), 0, 0.002)
    both = keeper.choose(*rows(*[0] * 8, 1, prompts=[(0, 4000)]))
    assert both.together and both.others == {0} and both.others_tokens == 8


def test_a_long_prompt_of_the_small_tenant_leaves_room_for_the_others_answers():
    keeper = isolation()
    keeper.note(None, 512, 0.512)
    keeper.note(keeper.choose(*rows(*[0] * 8, 1)), 0, 0.002)
    together = 0
    for _ in range(50):
        turn = keeper.choose(*rows(*[0] * 8, prompts=[(1, 4000)]))
        assert turn.small_tokens == 512
        together += turn.together
        keeper.note(turn, 512, 0.512 + 0.004 * turn.together)
    assert together >= 45


def test_a_tenant_that_only_ever_has_prompts_does_not_shut_others_out():
    keeper = isolation()
    absent = worst = 0
    for _ in range(400):
        turn = keeper.choose(*rows(*[0] * 4, prompts=[(1, 40)]))
        absent = 0 if turn.together else absent + 1
        worst = max(worst, absent)
        keeper.note(turn, 40, 0.004 + 0.004 * turn.together)
    assert worst <= 4


def test_while_nothing_is_known_every_second_step_is_everybodys():
    keeper = isolation()
    turns = [keeper.choose(*rows(*[0] * 4, prompts=[(1, 5)])).together for _ in range(6)]
    assert turns == [False, True] * 3


@settings(max_examples=60, deadline=None)
@given(
    costs=st.lists(st.floats(1e-5, 0.5), min_size=2, max_size=2),
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    noise=st.integers(0, 1000),
)
def test_every_tenant_keeps_having_turns(costs, counts, noise):
    fixed, row = costs
    generator = np.random.default_rng(noise)
    keeper = isolation()
    work = rows(*(tenant for tenant, count in enumerate(counts) for _ in range(count)))
    absent = np.zeros(len(counts), np.int64)
    for _ in range(1000):
        turn = keeper.choose(*work)
        present = np.ones(len(counts), np.bool_)
        if turn is not None and not turn.together:
            present[list(turn.others)] = False
        seconds = (fixed + row * np.array(counts)[present].sum()) * generator.uniform(0.8, 1.3)
        keeper.note(turn, 0, seconds)
        absent = np.where(present, 0, absent + 1)
        assert absent.max() <= 450
