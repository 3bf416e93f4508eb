"""Following KV events: of a server that leaves some out, and of a real engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest

from rhizome.engine.v1.engine_admin_service_pb2 import FlushCacheRequest
from rhizome.engine.v1.engine_admin_service_pb2_grpc import EngineAdminServiceStub
from rhizome.engine.v1.engine_service_pb2 import (
    KvCleared,
    KvEvent,
    KvRemoved,
    KvStored,
    WatchKvEventsResponse,
)
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.generate_pb2 import GenerateRequest, TokenIds
from rhizome_backends.rhizome import RhizomeEngine
from rhizome_backends.rhizome_events import EngineEvents
from rhizome_routing.policies.ask import Ask
from rhizome_routing.policies.cost import Cost
from rhizome_routing.prefix.index import PrefixIndex
from rhizome_testing.engine_process import EngineProcess
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.grpc_server import GrpcServer

CLEARED = KvEvent(cleared=KvCleared())


def stored(*hashes: int) -> KvEvent:
    return KvEvent(stored=KvStored(block_hashes=hashes, block_size=64))


def removed(*hashes: int) -> KvEvent:
    return KvEvent(removed=KvRemoved(block_hashes=hashes))


def message(sequence: int, *events: KvEvent, instance: str = "one") -> WatchKvEventsResponse:
    return WatchKvEventsResponse(sequence=sequence, instance_id=instance, events=events)


class Watched:
    """A server of `WatchKvEvents` that sends what a test puts into a queue."""

    def __init__(self) -> None:
        self.streams = 0
        self.outgoing: asyncio.Queue[WatchKvEventsResponse | None] = asyncio.Queue()

    async def watch(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        self.streams += 1
        while (one := await self.outgoing.get()) is not None:
            yield one.SerializeToString()


@pytest.fixture
async def watched() -> AsyncIterator[tuple[Watched, PrefixIndex]]:
    server = GrpcServer("127.0.0.1:0", service_names=(ENGINE_SERVICE,))
    source, index = Watched(), PrefixIndex()
    handler = grpc.unary_stream_rpc_method_handler(source.watch)
    server.add_handlers(ENGINE_SERVICE, {"WatchKvEvents": handler})
    port = await server.start()
    engine = RhizomeEngine(f"127.0.0.1:{port}")
    following = asyncio.create_task(engine.follow(index, "a"))
    yield source, index
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await engine.close()
    await server.drain_and_stop(0.0)


async def test_a_gap_asks_for_a_snapshot(watched, eventually):
    source, index = watched
    source.outgoing.put_nowait(message(7, CLEARED, stored(1, 2)))
    source.outgoing.put_nowait(message(8, stored(3), removed(2)))
    await eventually(lambda: index.match([3]) == {"a": 1})
    assert index.match([1, 2, 3]) == {"a": 1}
    assert index.view("a").exact
    source.outgoing.put_nowait(message(10, stored(4)))  # 9 is lost
    await eventually(lambda: source.streams == 2)
    assert index.match([4]) == {}
    source.outgoing.put_nowait(message(10, CLEARED, stored(1, 4)))
    await eventually(lambda: index.match([1, 4]) == {"a": 2})
    assert index.match([3]) == {}


async def test_without_a_stream_the_view_is_a_guess(watched, eventually):
    source, index = watched
    source.outgoing.put_nowait(message(1, CLEARED, stored(1)))
    await eventually(lambda: index.view("a").exact)
    source.outgoing.put_nowait(None)
    await eventually(lambda: not index.view("a").exact)
    assert index.match([1]) == {"a": 1}


@pytest.mark.parametrize("lost", [message(5, stored(2)), message(3, stored(2), instance="two")])
def test_nothing_is_applied_after_a_gap_or_of_another_instance(lost):
    index = PrefixIndex()
    events = EngineEvents(index, "a")
    assert not events.apply(message(2, stored(9)))
    assert events.apply(message(2, CLEARED, stored(1)))
    assert not events.apply(lost)
    assert index.match([2]) == {}
    assert events.apply(message(90, CLEARED, instance="two"))
    assert index.match([1]) == {}


async def test_follows_a_real_engine(tmp_path, tmp_path_factory, eventually):
    environment = {"XDG_RUNTIME_DIR": str(tmp_path_factory.mktemp("run"))}  # short: paths of sockets are
    model = Path(__file__).parents[2] / "models" / "demo"
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(EngineProcess(model, tmp_path, environment=environment))
        process.wait_serving()
        engine = RhizomeEngine(process.target)
        policy = Cost()
        following = asyncio.create_task(engine.follow(policy.index, "real"))
        await eventually(lambda: policy.index.view("real").exact)
        ids = np.random.default_rng(0).integers(5, 300, 500, dtype=np.uint32)
        request = GenerateRequest(token_ids=TokenIds(ids=ids.tolist()), cache_namespace="space")
        request.stop.max_tokens = 1
        probes = Ask(ids, namespace="space").chain(16).probes
        async with grpc.aio.insecure_channel(process.target) as channel:
            async for _ in EngineServiceStub(channel).Generate(request):
                pass
        await eventually(lambda: policy.index.match(probes) == {"real": len(probes)})
        assert probes
        async with grpc.aio.insecure_channel(process.admin_target) as channel:
            await EngineAdminServiceStub(channel).FlushCache(FlushCacheRequest())
        await eventually(lambda: len(policy.index) == 0)
        assert policy.index.view("real").exact
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await engine.close()
