"""Every process of a stack is killed and frozen in turn while requests of all kinds flow."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest
from tests.chaos.asking import End, Traffic, ends
from tests.chaos.at_rest import (
    Outage,
    assert_engines_free,
    assert_nothing_leaked,
    assert_one_end_each,
    assert_traces_whole,
    now_s,
)
from tests.chaos.conftest import FULL, Report
from tests.chaos.stack import WholeStack, eventually

KILLED_QUICKLY = ("core-0", "engine-1", "proxy", "gateway")
FROZEN_QUICKLY = ("core-1", "proxy")
RATE = 12.0 if FULL else 8.0
ROUNDS = 3 if FULL else 1
FROZEN_S = 5.0 if FULL else 1.0
VICTIMS = ("core-0", "core-1", "engine-0", "engine-1", "proxy", "gateway") if FULL else KILLED_QUICKLY
BETWEEN = 10 if FULL else 3
"""Requests that must be answered after a blow before the next one."""


@pytest.mark.timeout(900)
async def test_every_process_is_killed_in_turn(stack: WholeStack, report: Report) -> None:
    outages: list[Outage] = []
    async with Traffic(stack, RATE) as traffic:
        await traffic.count_until(BETWEEN)
        before = await asyncio.to_thread(stack.held)
        for _ in range(ROUNDS):
            for name in VICTIMS:
                async with _outage(stack, name, outages):
                    await asyncio.to_thread(_kill_and_restart, stack, name)
                await traffic.count_until(BETWEEN)
        asked = await traffic.stop()
        sent = traffic.sent
    report["ends"] = ends(asked)
    assert_one_end_each(sent, asked, outages)
    # Two engines: while one is away, the other answers, so hardly anybody notices what happened to an engine.
    apart = [one for one in asked if not any(out.touches(one) for out in outages)]
    assert {one.end for one in apart} <= {End.ANSWER, End.CANCEL}, ends(apart)
    await asyncio.to_thread(assert_engines_free, stack)
    await asyncio.to_thread(assert_nothing_leaked, stack, before)
    report["whole traces"] = await asyncio.to_thread(assert_traces_whole, stack, asked, outages)
    report["recovered within"] = f"{max(out.ended_s - out.began_s for out in outages):.1f} s"


@pytest.mark.timeout(900)
async def test_every_process_is_frozen_in_turn(stack: WholeStack, report: Report) -> None:
    async with Traffic(stack, RATE, seed=2) as traffic:
        await traffic.count_until(BETWEEN)
        before = await asyncio.to_thread(stack.held)
        for name, pid in stack.processes().items():
            if not FULL and name not in FROZEN_QUICKLY:
                continue
            process = psutil.Process(pid)
            process.send_signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(FROZEN_S)  # this is the blow itself
            finally:
                process.send_signal(signal.SIGCONT)
            await traffic.count_until(BETWEEN)
            assert process.is_running(), f"{name} was replaced, though it only slept"
        asked = await traffic.stop()
        sent = traffic.sent
    report["ends"] = ends(asked)
    assert_one_end_each(sent, asked)
    await asyncio.to_thread(assert_engines_free, stack)
    await asyncio.to_thread(assert_nothing_leaked, stack, before)
    report["whole traces"] = await asyncio.to_thread(assert_traces_whole, stack, asked)


@asynccontextmanager
async def _outage(stack: WholeStack, name: str, outages: list[Outage]) -> AsyncIterator[None]:
    began_s = now_s()
    try:
        yield
        await asyncio.to_thread(stack.wait_ready)
    finally:
        outages.append(Outage(name, began_s, now_s()))


def _kill_and_restart(stack: WholeStack, name: str) -> None:
    if not name.startswith("core"):
        cores = _core_pids(stack)
        stack.services[name].kill()
        stack.services[name].start()
        stack.services[name].wait_ready()
        assert _core_pids(stack) == cores, "a model was loaded again"
        return
    index = int(name[-1])
    front, core = stack.services[f"engine-{index}"], stack.core(index)
    front_pid = front.pid
    core.kill()
    # Its front has to notice and to say so, and to start another one.
    eventually(lambda: stack.load(index) is None, lambda: "the front says that its dead core serves")
    front.wait_ready()
    assert front.pid == front_pid and stack.core(index).pid != core.pid


def _core_pids(stack: WholeStack) -> list[int]:
    return [stack.core(index).pid for index in range(len(stack.engines))]
