"""Bounds of time that are about the program, not about whoever else uses the machine.

A machine that is shared stops a process now and then for longer than the bound, but hardly several times in a
row. A program that is too slow is too slow each time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

ATTEMPTS = 4


def assert_within(bound_s: float, measure: Callable[[], float]) -> None:
    """Fail when none of a few attempts takes less than `bound_s`.

    Args:
        bound_s: seconds.
        measure: does it once, from the beginning, and returns the seconds that it took.

    Raises:
        AssertionError: all took longer; the message tells how long.
    """
    took: list[float] = []
    while not took or (took[-1] >= bound_s and len(took) < ATTEMPTS):
        took.append(measure())
    _check(bound_s, took)


async def assert_within_async(bound_s: float, measure: Callable[[], Awaitable[float]]) -> None:
    """The same in an event loop.

    Args:
        bound_s: seconds.
        measure: does it once, from the beginning, and returns the seconds that it took.

    Raises:
        AssertionError: all took longer; the message tells how long.
    """
    took: list[float] = []
    while not took or (took[-1] >= bound_s and len(took) < ATTEMPTS):
        took.append(await measure())
    _check(bound_s, took)


def _check(bound_s: float, took: list[float]) -> None:
    assert took[-1] < bound_s, f"attempts took {took} s, none of them less than {bound_s:g} s"
