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
from rhizome.engine.v1.load_pb2 import Load, RequestTotals
from rhizome_proxy.pool.backend import Backend
from rhizome_proxy.pool.spec import BackendSpec
from rhizome_proxy.service.fleet import sum_loads
from rhizome_transport.channel import ENGINE_SERVICE


def backend_with(load: Load | None) -> Backend:
    backend = Backend(BackendSpec("b:1", name="b"), None)
    backend.observe_load(load)
    return backend


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


async def test_a_field_that_one_engine_does_not_report_is_absent_and_not_smaller():
    known = Load(running_requests=2, kv_pages_total=10, page_size=16, totals=RequestTotals(received=4))
    total = sum_loads(
        [backend_with(known), backend_with(Load(running_requests=1, page_size=32))],
        instance_id="p",
        sequence=1,
    )
    assert total.running_requests == 3
    for field in ("kv_pages_total", "page_size", "totals", "waiting_requests"):
        assert not total.HasField(field), field
    assert not sum_loads([backend_with(known), backend_with(None)], instance_id="p", sequence=1).HasField(
        "running_requests"
    )
    both = sum_loads([backend_with(known), backend_with(known)], instance_id="p", sequence=1)
    assert both.totals.received == 8


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


def test_times_are_summed_like_counts_and_absent_where_one_engine_knows_none():
    def totals(nanoseconds: int) -> RequestTotals:
        one = RequestTotals(steps=2)
        one.queue_time.FromNanoseconds(nanoseconds)
        return one

    loads = [backend_with(Load(totals=totals(1_600_000_000))) for _ in range(2)]
    summed = sum_loads(loads, instance_id="p", sequence=1).totals
    assert (summed.steps, summed.queue_time.ToNanoseconds()) == (4, 3_200_000_000)
    older = backend_with(Load(totals=RequestTotals(steps=1)))
    summed = sum_loads([*loads, older], instance_id="p", sequence=1).totals
    assert summed.steps == 5
    assert not summed.HasField("queue_time")


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
