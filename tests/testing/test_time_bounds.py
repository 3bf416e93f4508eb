from __future__ import annotations

import pytest

from rhizome_testing.time_bounds import ATTEMPTS, assert_within, assert_within_async


def test_one_quick_attempt_is_enough_and_the_last() -> None:
    times = iter([2.0, 1.0, 0.5, 3.0])
    assert_within(1.0, lambda: next(times))
    assert list(times) == [3.0]


def test_what_is_always_slow_fails_with_its_times() -> None:
    with pytest.raises(AssertionError, match=r"1\.5, 1\.5") as caught:
        assert_within(1.0, lambda: 1.5)
    assert str(caught.value).count("1.5") == ATTEMPTS


async def test_both_hold_in_an_event_loop_too() -> None:
    times = [1.5] * (ATTEMPTS + 1) + [0.5]

    async def measure() -> float:
        return times.pop()

    await assert_within_async(1.0, measure)
    with pytest.raises(AssertionError, match="none of them less than 1 s"):
        await assert_within_async(1.0, measure)
    assert len(times) == 1
