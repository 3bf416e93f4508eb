"""`WatchKvEvents` of a real engine: over gRPC, and over ZeroMQ from the core itself."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from rhizome.engine.v1.engine_admin_service_pb2 import FlushCacheRequest
from rhizome.engine.v1.engine_admin_service_pb2_grpc import EngineAdminServiceStub
from rhizome.engine.v1.engine_service_pb2 import (
    GetModelInfoRequest,
    WatchKvEventsRequest,
    WatchKvEventsResponse,
)
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.text_requests import ids_of, run
from rhizome_transport.block_hashes import block_hashes
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.kv_watch import watch_kv_events
from rhizome_transport.zmq_client import ZmqEngineClient

PROMPT = list(range(30, 130))
StartEngine = Callable[..., EngineProcess]


def apply(blocks: set[int], message: WatchKvEventsResponse) -> None:
    for event in message.events:
        if event.HasField("cleared"):
            blocks.clear()
        blocks |= {*event.stored.block_hashes}
        blocks -= {*event.removed.block_hashes}


async def blocks_after(stub: Any, namespace: str = "") -> set[int]:
    """Run a request; the hashes of the blocks that it leaves in the cache."""
    request = GenerateRequest(cache_namespace=namespace)
    request.token_ids.ids.extend(PROMPT)
    request.sampling.temperature = 0
    request.stop.max_tokens = 40
    request.stop.ignore_eos = True
    tokens = PROMPT + ids_of(await run(stub, request))
    page_size = (await stub.GetModelInfo(GetModelInfoRequest())).page_size
    return {*block_hashes(tokens[:-1], page_size, namespace).tolist()}


async def test_both_ways_tell_what_is_cached(start_engine: StartEngine, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/run/core.ipc"
    engine = start_engine("--core-endpoint", endpoint)
    engine.wait_serving()
    direct = ZmqEngineClient(endpoint, peer_name="test")

    def call(request: bytes) -> Any:
        return direct.call("WatchKvEvents", request, timeout_s=None)

    async with (
        asyncio.timeout(60),
        grpc.aio.insecure_channel(engine.target) as channel,
        grpc.aio.insecure_channel(engine.admin_target) as admin,
        aclosing(watch_kv_events(call)) as from_core,
    ):
        stub: Any = EngineServiceStub(channel)
        remote: Any = stub.WatchKvEvents(WatchKvEventsRequest())
        over_grpc: set[int] = set()
        over_zmq: set[int] = set()

        async def read_until(wanted: set[int]) -> None:
            while over_grpc != wanted:
                apply(over_grpc, await remote.read())
            while over_zmq != wanted:
                apply(over_zmq, WatchKvEventsResponse.FromString(await anext(from_core)))

        known = await blocks_after(stub)
        assert len(known) >= len(PROMPT) // 16
        await read_until(known)
        tenants = await blocks_after(stub, "tenant")
        assert len(tenants) == len(known) and not tenants & known
        await read_until(known | tenants)
        service: Any = EngineAdminServiceStub(admin)
        await service.FlushCache(FlushCacheRequest(cache_namespace=""))
        await read_until(tenants)
        await service.FlushCache(FlushCacheRequest())
        await read_until(set())
        remote.cancel()
    await direct.close()


async def test_a_new_core_begins_with_a_snapshot(start_engine: StartEngine) -> None:
    engine = start_engine()
    engine.wait_serving()
    async with asyncio.timeout(90), grpc.aio.insecure_channel(engine.target) as channel:
        stub: Any = EngineServiceStub(channel)
        known = await blocks_after(stub)
        watch = stub.WatchKvEvents(WatchKvEventsRequest())
        first = await watch.read()
        blocks: set[int] = set()
        apply(blocks, first)
        assert blocks == known
        engine.core().kill()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        second = None
        while second is None:  # as a proxy does: the core is loading for a while
            try:
                second = await stub.WatchKvEvents(
                    WatchKvEventsRequest(start_sequence=first.sequence + 1)
                ).read()
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                await asyncio.sleep(0.05)
        apply(blocks, second)
        assert not blocks
        assert second.sequence > first.sequence and second.instance_id != first.instance_id


async def test_a_request_that_cannot_be_read_is_refused(channel: grpc.aio.Channel) -> None:
    call = channel.unary_stream(f"/{ENGINE_SERVICE}/WatchKvEvents")(b"\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_watcher_does_not_hold_up_the_end_of_the_engine(start_engine: StartEngine) -> None:
    engine = start_engine()
    engine.wait_serving()
    async with asyncio.timeout(60), grpc.aio.insecure_channel(engine.target) as channel:
        stub: Any = EngineServiceStub(channel)
        watch = stub.WatchKvEvents(WatchKvEventsRequest())
        await watch.read()
        engine.signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError):
            await watch.read()
        assert engine.wait(20) == 0
