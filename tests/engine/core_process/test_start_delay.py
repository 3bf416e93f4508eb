"""How long an idle engine waits for company, by a clock of the test's and in the real loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rhizome_engine.core.start_delay import StartDelay
from rhizome_testing.hash_core import HashCore, all_events, token_request
from rhizome_transport.zmq_client import ZmqEngineClient

DELAY_S = 0.4


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_wait_begins_with_the_first_work_and_ends_once() -> None:
    clock = Clock()
    delay = StartDelay(0.5, clock)
    assert delay.left_ms(False) == 0
    assert delay.left_ms(True) == 500
    clock.now += 0.25 - 2**-12
    assert delay.left_ms(True) == 251  # rounded up: never too soon
    clock.now += 0.25 + 2**-12
    assert [delay.left_ms(True), delay.left_ms(True)] == [0, 0]


def test_an_engine_that_became_idle_waits_again() -> None:
    clock = Clock()
    delay = StartDelay(0.5, clock)
    delay.left_ms(True)
    clock.now += 1.0
    assert delay.left_ms(True) == 0
    delay.left_ms(False)
    assert delay.left_ms(True) == 500


def test_without_an_interval_nobody_waits() -> None:
    assert StartDelay().left_ms(True) == 0


@pytest.fixture
def patient_core(tmp_path: Path) -> Iterator[HashCore]:
    core = HashCore(tmp_path, start_delay_s=DELAY_S)
    yield core
    core.stop()


async def test_requests_that_come_within_the_interval_begin_in_one_step(patient_core: HashCore) -> None:
    client = ZmqEngineClient(patient_core.endpoint, peer_name="test")
    await client.load()
    began = time.monotonic()
    first = asyncio.create_task(all_events(client, token_request([1, 2, 3])))
    await client.load()  # the first one is in the queue now, and the socket is still served
    assert not patient_core.runner.batches
    second = asyncio.create_task(all_events(client, token_request([4, 5])))
    events = await asyncio.gather(first, second)
    took = time.monotonic() - began
    assert sorted(patient_core.runner.batches[0]) == [2, 3]
    assert took >= DELAY_S
    waited = events[0][-1].finished.timings.queue_time.ToMilliseconds() / 1e3
    assert DELAY_S <= waited <= took
    await client.close()


async def test_who_comes_while_others_run_does_not_wait(patient_core: HashCore) -> None:
    client = ZmqEngineClient(patient_core.endpoint, peer_name="test")
    patient_core.slow_down()
    running = client.generate(token_request([1], max_tokens=200))
    await anext(running)
    late = await all_events(client, token_request([4, 5], max_tokens=1))
    assert late[-1].finished.timings.queue_time.ToMilliseconds() / 1e3 < DELAY_S
    await running.aclose()
    await client.close()
