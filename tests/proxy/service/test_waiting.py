"""Requests of the gRPC face wait at the proxy while no engine has room."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.proxy.conftest import eventually

from rhizome.common.v1.common_pb2 import Usage
from rhizome.engine.v1.frames_pb2 import RequestEvent, Submit
from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_CANCELLED,
    Finished,
    GenerateRequest,
    GenerateResponse,
    TokenIds,
)
from rhizome_testing.request_events import delta_event, started_event
from rhizome_transport.errors import from_rpc_error


@dataclass
class Pool:
    """A proxy whose only engine has room for one request, which it has; and a peer."""

    engine: Any
    proxy: Any
    peer: Any

    @property
    def waiting(self) -> int:
        return self.proxy.router.admissions.waiting()

    @property
    def sent(self) -> list[str]:
        return [submit.request.request_id for submit in self.engine.submits]

    async def submit(self, request_id: str) -> None:
        """Submit what has to wait."""
        before = self.waiting
        await self.peer.submit(request_id)
        await eventually(lambda: self.waiting == before + 1)


@pytest.fixture
def full(cluster, script):
    async def start(**settings: Any) -> Pool:
        engine = await cluster.engine(script.start_and_hold)
        proxy = await cluster.proxy(engine, max_in_flight=1, **settings)
        peer = await cluster.peer(proxy)
        await peer.submit("first")
        await peer.wait_events("first", 1)
        return Pool(engine, proxy, peer)

    return start


async def test_a_request_waits_until_there_is_room(full):
    pool = await full()
    await pool.submit("second")
    await pool.submit("third")
    assert pool.sent == ["first"]
    await pool.peer.cancel("first")
    await pool.peer.wait_events("second", 1)
    assert pool.sent == ["first", "second"]
    await pool.peer.cancel("second")
    await pool.peer.wait_events("third", 1)


async def test_a_cancel_ends_a_request_that_waits(full):
    pool = await full()
    await pool.submit("second")
    await pool.peer.cancel("second")
    final = await pool.peer.outcome("second")
    assert final.response.finished.reason == FINISH_REASON_CANCELLED
    assert pool.waiting == 0
    await pool.peer.cancel("first")
    await pool.peer.outcome("first")
    assert pool.sent == ["first"]


async def test_the_time_that_the_caller_gave_ends_the_wait(full):
    pool = await full()
    await pool.peer.submit("second", timeout=Duration(nanos=50_000_000))
    assert (await pool.peer.error("second")).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert pool.sent == ["first"] and pool.waiting == 0


async def test_who_waits_too_long_is_told_when_to_try_again(full):
    pool = await full(queue_timeout_s=0.05)
    await pool.peer.submit("second")
    error = await pool.peer.error("second")
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.retry_after_s is not None


async def test_where_too_many_wait_the_next_is_refused_at_once(full):
    pool = await full(max_queued=1)
    await pool.submit("second")
    await pool.peer.submit("third")
    assert (await pool.peer.error("third")).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert pool.waiting == 1


async def test_a_peer_that_vanishes_waits_no_more(full):
    pool = await full()
    await pool.submit("second")
    await pool.peer.close()
    await eventually(lambda: pool.waiting == 0)
    assert pool.sent == ["first"]


async def test_generate_waits_too(full, cluster):
    pool = await full(queue_timeout_s=0.5)
    stub = cluster.stub(pool.proxy)
    call = stub.Generate(GenerateRequest(request_id="second"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert from_rpc_error(caught.value).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    call = stub.Generate(GenerateRequest(request_id="third"))
    await eventually(lambda: pool.waiting == 1)
    await pool.peer.cancel("first")
    assert (await call.read()).HasField("started")
    assert [request.request_id for request, _, _ in pool.engine.generates] == ["third"]


async def test_a_deadline_holds_where_the_engine_does_not_keep_it(cluster, script, eventually):
    engine = await cluster.engine(script.start_and_hold)
    proxy = await cluster.proxy(engine)
    peer = await cluster.peer(proxy)
    await peer.submit("late", timeout={"seconds": 1})
    await peer.wait_events("late", 1)
    error = await peer.error("late")
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: engine.cancels == ["late"])
    assert proxy.registry.get(engine.address).in_flight == 0


@pytest.mark.parametrize("usage", [True, False], ids=["told", "counted"])
async def test_a_tenant_pays_for_what_was_really_said(cluster, usage):
    go_on = asyncio.Event()

    async def answer(engine_peer, submit):
        name = submit.request.request_id
        if name == "first":
            await go_on.wait()
        said = range(2000 if name.startswith("long") else 3)
        finished = Finished(usage=Usage(completion_tokens=len(said)) if usage else None)
        end = RequestEvent(request_id=name, response=GenerateResponse(finished=finished), final=True)
        await engine_peer.send(started_event(name), delta_event(name, *said), end)

    engine = await cluster.engine(answer)
    proxy = await cluster.proxy(engine, max_in_flight=1)
    peer = await cluster.peer(proxy)
    names = ["first", "long-1", "long-2", "short-1", "short-2", "short-3"]
    for number, name in enumerate(names):
        tenant = name.partition("-")[0]
        request = GenerateRequest(request_id=name, token_ids=TokenIds(ids=[1, 2, 3]), tenant=tenant)
        await peer.send(submit=Submit(request=request))
        await eventually(lambda number=number: proxy.router.admissions.waiting() == number)
    go_on.set()
    await peer.wait_events("long-2", 3)
    order = [submit.request.request_id for submit in engine.submits]
    assert order == ["first", "long-1", "short-1", "short-2", "short-3", "long-2"]
