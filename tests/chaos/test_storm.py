"""Whatever happens to servers and connections: exact answers or honest errors, and nothing left behind.

`make chaos` runs the long one and prints what became of all requests. These set it:

    RHIZOME_CHAOS_RATE     streams per second (100)
    RHIZOME_CHAOS_S        seconds of blows (50)
    RHIZOME_CHAOS_SEED     of all chances (1)
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.chaos.arena import Arena, assert_honest
from tests.chaos.blows import ALL, QUICK, Blow

from rhizome_testing.storm.outcome import Ending, Outcome, counted

SEED = int(os.environ.get("RHIZOME_CHAOS_SEED", "1"))
RATE = float(os.environ.get("RHIZOME_CHAOS_RATE", "100"))
SECONDS = float(os.environ.get("RHIZOME_CHAOS_S", "50"))


async def test_a_short_storm_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Arena(tmp_path, ("vllm", "llamacpp"), 20, SEED) as arena:
        await storm(arena, QUICK, least_s=0.0, capsys=capsys)


@pytest.mark.skipif(os.environ.get("RHIZOME_CHAOS") != "full", reason="make chaos runs it")
@pytest.mark.timeout(max(300, SECONDS * 4))
async def test_a_long_storm_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with Arena(tmp_path, ("vllm", "sglang", "llamacpp", "tgi"), RATE, SEED) as arena:
        await storm(arena, ALL, least_s=SECONDS, capsys=capsys)


async def storm(
    arena: Arena, blows: Sequence[Blow], *, least_s: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every blow at least once, in an order by chance; then everything must be as it was."""
    arena.begin()
    await asyncio.sleep(1.0)
    arena.note_level()
    began = time.monotonic()
    for number in itertools.count():
        if number % len(blows) == 0:
            order = arena.dice.sample(blows, len(blows))
        if number >= len(blows) and time.monotonic() - began > least_s:
            break
        blow = order[number % len(blows)]
        with capsys.disabled():
            print(f"\n  {time.monotonic() - began:5.1f} s {blow.__name__.replace('_', ' ')}", end="")
        await blow(arena)
    await arena.calm()
    outcomes = await arena.end()
    with capsys.disabled():
        report(outcomes)
    for face, ended in outcomes.items():
        assert_honest(face, ended)
        arena.assert_mostly_exact(face, ended)
    await arena.assert_quiet()
    with capsys.disabled():
        print(f"  proxy: {arena.told()}")


def report(outcomes: dict[str, list[Outcome]]) -> None:
    """What became of all requests."""
    print()
    for face, ended in outcomes.items():
        shown = ", ".join(f"{name} {count}" for name, count in counted(ended).items() if count)
        print(f"  {face}: {len(ended)} requests: {shown}")
        for one in [one for one in ended if one.ending is not Ending.EXACT][:5]:
            print(f"      {one.ending.value} after {one.ended_s - one.began_s:.1f} s: {one.detail[:160]}")
