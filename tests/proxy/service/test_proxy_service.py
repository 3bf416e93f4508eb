"""ProxyService: the pool as people see it."""

from __future__ import annotations

import time

import grpc
import grpc.aio
import pytest
from tests.proxy.service.resumable_answers import ask, losing, submit

from rhizome.engine.v1.load_pb2 import Load
from rhizome.proxy.v1 import proxy_service_pb2 as proxy_pb2
from rhizome.proxy.v1.proxy_service_pb2_grpc import ProxyServiceStub


async def test_lists_the_pool(cluster, script, eventually):
    busy = await cluster.engine(script.start_and_hold, model="apple", load=Load(running_requests=1))
    down = await cluster.engine()
    proxy = await cluster.proxy(busy, down)
    stub = ProxyServiceStub(cluster.channel(proxy))
    await down.kill()
    await eventually(lambda: len(proxy.registry.ready()) == 1)
    peer = await cluster.peer(proxy)
    await peer.submit("r1")
    await peer.wait_events("r1", 1)
    answer = await stub.ListBackends(proxy_pb2.ListBackendsRequest())
    assert [backend.name for backend in answer.backends] == sorted([busy.address, down.address])
    by_name = {backend.name: backend for backend in answer.backends}
    ready = by_name[busy.address]
    assert (ready.address, ready.kind, list(ready.models)) == (busy.address, "rhizome", ["apple"])
    assert ready.state == proxy_pb2.BACKEND_STATE_READY
    assert (ready.in_flight_requests, ready.total_requests, ready.failed_requests) == (1, 1, 0)
    assert (ready.reason, ready.load.running_requests) == ("", 1)
    assert abs(ready.last_seen.ToNanoseconds() / 1e9 - time.time()) < 30
    lost = by_name[down.address]
    assert lost.state == proxy_pb2.BACKEND_STATE_DOWN
    assert "UNAVAILABLE" in lost.reason
    assert not lost.HasField("load")


async def test_counts_what_failed_before_its_first_event(cluster, script):
    refusing = await cluster.engine(script.refuse(script.full))
    proxy = await cluster.proxy(refusing)
    peer = await cluster.peer(proxy)
    await peer.submit("r1")
    await peer.error("r1")
    answer = await ProxyServiceStub(cluster.channel(proxy)).ListBackends(proxy_pb2.ListBackendsRequest())
    backend = answer.backends[0]
    assert (backend.in_flight_requests, backend.total_requests, backend.failed_requests) == (0, 1, 1)


async def test_counts_the_answers_that_went_on_elsewhere(cluster):
    script = losing([3])
    engines = [await cluster.engine(script), await cluster.engine(script)]
    proxy = await cluster.proxy(*engines)
    peer = await cluster.peer(proxy)
    await submit(peer, ask())
    await peer.outcome("r1")
    answer = await ProxyServiceStub(cluster.channel(proxy)).ListBackends(proxy_pb2.ListBackendsRequest())
    resumed = {backend.address: backend.resumed_requests for backend in answer.backends}
    lost_at = next(one for one in engines if not one.submits[0].request.resumed_tokens)
    assert resumed == {one.address: int(one is lost_at) for one in engines}


@pytest.mark.parametrize("method", ["AddBackend", "RemoveBackend", "DrainBackend", "WatchBackends"])
async def test_changing_the_pool_is_not_offered_to_everybody(cluster, method):
    stub = ProxyServiceStub(cluster.channel(await cluster.proxy(await cluster.engine())))
    call = getattr(stub, method)(getattr(proxy_pb2, f"{method}Request")())
    with pytest.raises(grpc.aio.AioRpcError, match="--admin-port") as caught:
        await (call.read() if method == "WatchBackends" else call)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
