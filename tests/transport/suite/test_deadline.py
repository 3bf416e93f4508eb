"""The time that a request has travels with it, and ends it."""

from __future__ import annotations

import time

import grpc
import pytest

from rhizome_testing.engine_ways import ask
from rhizome_transport.errors import EngineError


async def test_the_time_left_travels_with_the_request(wired):
    began = time.monotonic()
    [event async for event in wired.client.generate(ask("count-4"), timeout_s=30.0)]
    timeout = wired.core.script.submits[0].timeout
    took = time.monotonic() - began
    assert 30.0 - took <= timeout.seconds + timeout.nanos / 1e9 <= 30.0


async def test_no_deadline_means_no_timeout_field(wired):
    [event async for event in wired.client.generate(ask("count-5"))]
    assert not wired.core.script.submits[0].HasField("timeout")


async def test_an_engine_that_forgets_the_deadline_is_cancelled(wired, until):
    began = time.monotonic()
    with pytest.raises(EngineError) as caught:
        [event async for event in wired.client.generate(ask("queue-1"), timeout_s=0.2)]
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 3.0
    await until(lambda: wired.core.script.cancels == ["queue-1"])
