"""Errors arrive with all that the engine said, after what came before them."""

from __future__ import annotations

from contextlib import aclosing

import grpc
import pytest

from rhizome_testing.engine_ways import DIRECT, ask, kinds
from rhizome_transport.errors import EngineError


async def test_errors_keep_code_reason_param_and_delay(wired):
    with pytest.raises(EngineError) as caught:
        [event async for event in wired.client.generate(ask("refuse-1"))]
    error = caught.value
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (error.reason, error.retry_after_s) == ("QUEUE_FULL", 1.5)
    if wired.way in DIRECT:  # a proxy speaks for all its engines here
        assert error.param == "priority"
    assert "queue is full" in error.message


async def test_what_came_before_an_error_is_delivered_first(wired):
    events = []
    with pytest.raises(EngineError) as caught:
        async for event in wired.client.generate(ask("break-1")):
            events.append(event)  # noqa: PERF401 - what came before the error counts
    assert kinds(events) == ["started", "delta"]
    assert caught.value.code is grpc.StatusCode.INTERNAL


async def test_an_id_that_is_open_is_refused(wired):
    async with aclosing(wired.client.generate(ask("hang-4"))) as events:
        await anext(events)
        with pytest.raises(EngineError) as caught:
            [event async for event in wired.client.generate(ask("hang-4"))]
    assert caught.value.code is grpc.StatusCode.ALREADY_EXISTS


async def test_unknown_models_are_not_found(wired):
    with pytest.raises(EngineError) as caught:
        await wired.client.model_info("other")
    assert (caught.value.code, caught.value.param) == (grpc.StatusCode.NOT_FOUND, "model")
