"""Calls that concern all engines."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from rhizome.engine.v1.engine_service_pb2 import (
    AbortRequest,
    GetLoadRequest,
    WatchKvEventsRequest,
    WatchLoadRequest,
)
from rhizome.engine.v1.load_pb2 import Load
from rhizome_transport.channel import ENGINE_SERVICE


async def test_load_is_the_sum_over_ready_engines(cluster, eventually):
    engines = [
        await cluster.engine(load=Load(running_requests=running, waiting_requests=1, page_size=16))
        for running in (2, 3)
    ]
    down = await cluster.engine(load=Load(running_requests=100, waiting_requests=100))
    down.set_serving(False)
    stub = cluster.stub(await cluster.proxy(*engines, down))
    first = (await stub.GetLoad(GetLoadRequest())).load
    second = (await stub.GetLoad(GetLoadRequest())).load
    assert (first.running_requests, first.waiting_requests, first.page_size) == (5, 2, 16)
    assert first.instance_id == second.instance_id != ""
    assert first.sequence < second.sequence


async def test_watch_load_tells_the_sum_whenever_it_changed(cluster):
    engines = [await cluster.engine(load=Load(running_requests=running)) for running in (2, 3)]
    stub = cluster.stub(await cluster.proxy(*engines))
    watch = stub.WatchLoad(WatchLoadRequest(min_interval_ms=10))
    first = (await watch.read()).load
    engines[0].load = Load(running_requests=7)
    second = (await watch.read()).load
    assert (first.running_requests, second.running_requests) == (5, 10)
    assert first.instance_id == second.instance_id != ""
    assert first.sequence < second.sequence
    watch.cancel()


async def test_abort_is_told_to_every_engine(cluster):
    engines = [await cluster.engine() for _ in range(2)]
    dead = await cluster.engine()
    proxy = await cluster.proxy(*engines, dead)
    await dead.kill()
    await cluster.stub(proxy).Abort(AbortRequest(request_ids=["r1", "r2"]))
    assert [engine.aborts for engine in engines] == [["r1", "r2"]] * 2


async def test_a_watch_that_is_no_message_is_refused(cluster):
    channel = cluster.channel(await cluster.proxy(await cluster.engine()))
    call = channel.unary_stream(f"/{ENGINE_SERVICE}/WatchLoad")(b"\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_kv_events_are_not_offered_and_say_what_is(cluster):
    stub = cluster.stub(await cluster.proxy(await cluster.engine()))
    with pytest.raises(grpc.aio.AioRpcError, match="not implemented") as caught:
        await stub.WatchKvEvents(WatchKvEventsRequest()).read()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
