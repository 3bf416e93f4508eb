"""`WatchKvEvents` over the core's real socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import zmq

from rhizome.engine.v1.engine_admin_service_pb2 import FlushCacheRequest
from rhizome.engine.v1.engine_service_pb2 import WatchKvEventsRequest, WatchKvEventsResponse
from rhizome.engine.v1.frames_pb2 import Call, ClientFrame, EngineFrame, Hello
from rhizome_testing.hash_core import HashCore, all_events, token_request, tokens_in
from rhizome_transport.block_hashes import block_hashes
from rhizome_transport.channel import PROTOCOL_VERSION
from rhizome_transport.dealer import RELAYED_IDENTITY_PREFIX, DealerConnection
from rhizome_transport.errors import EngineError
from rhizome_transport.kv_watch import stored_tokens, watch_kv_events
from rhizome_transport.zmq_client import ZmqEngineClient

PAGE_SIZE = 4
LONG_S = 20.0


class Blocks:
    """Which blocks an engine says it caches."""

    def __init__(self, messages: AsyncIterator[bytes]) -> None:
        self.hashes: set[int] = set()
        self.snapshots = 0
        self.newest = WatchKvEventsResponse()
        self._messages = messages

    async def read(self) -> WatchKvEventsResponse:
        async with asyncio.timeout(LONG_S):
            self.newest = WatchKvEventsResponse.FromString(await anext(self._messages))
        for event in self.newest.events:
            if event.HasField("cleared"):
                self.hashes.clear()
                self.snapshots += 1
            self.hashes |= {*event.stored.block_hashes}
            self.hashes -= {*event.removed.block_hashes}
        return self.newest

    async def read_until(self, wanted: set[int]) -> None:
        while self.hashes != wanted:
            await self.read()


def watch(client: ZmqEngineClient, request: bytes = b"") -> Blocks:
    def call(start: bytes):
        return client.call("WatchKvEvents", start, timeout_s=None)

    return Blocks(watch_kv_events(call, request))


def from_sequence(start: int) -> bytes:
    return WatchKvEventsRequest(start_sequence=start).SerializeToString()


async def cached_by(client: ZmqEngineClient, prompt: list[int], namespace: str = "") -> set[int]:
    """Run a request; the hashes of the blocks that it leaves in the cache."""
    request = token_request(prompt)
    request.cache_namespace = namespace
    tokens = prompt + tokens_in(await all_events(client, request))
    return {*block_hashes(tokens[:-1], PAGE_SIZE, namespace).tolist()}  # the last one was never computed


async def test_a_watcher_knows_what_requests_leave_in_the_cache(client: ZmqEngineClient) -> None:
    known = await cached_by(client, [1, 2, 3, 4, 5, 6])
    blocks = watch(client)
    first = await blocks.read()
    assert blocks.hashes == known and first.instance_id == HashCore.instance_id
    known |= await cached_by(client, [1, 2, 3, 4, 9, 9, 9])
    await blocks.read_until(known)
    known |= await cached_by(client, [1, 2, 3, 4, 5, 6], "tenant")
    await blocks.read_until(known)
    assert blocks.newest.sequence > first.sequence and blocks.newest.instance_id == HashCore.instance_id
    await client.call("FlushCache", FlushCacheRequest(cache_namespace="tenant").SerializeToString())
    await blocks.read()
    assert len(blocks.newest.events) == 1 and blocks.newest.events[0].HasField("removed")
    await client.call("FlushCache", b"")
    await blocks.read()
    assert blocks.newest.events[0].HasField("cleared") and not blocks.hashes


async def test_token_ids_are_told_to_peers_on_this_host_who_ask(
    client: ZmqEngineClient, hash_core: HashCore
) -> None:
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    known = await cached_by(client, prompt)
    await cached_by(client, prompt, "tenant")
    request = WatchKvEventsRequest(with_token_ids=True).SerializeToString()
    (answer,) = await client.call("WatchKvEvents", request)
    cleared, *stored = WatchKvEventsResponse.FromString(answer).events
    assert cleared.HasField("cleared")
    told = {one: event.stored for event in stored for one in event.stored.block_hashes}
    assert {*told} == known, "and nothing of the tenant's"
    first = next(event.stored for event in stored if not event.stored.HasField("parent_hash"))
    assert stored_tokens(first)[:8] == prompt[:8]

    relayed = DealerConnection(
        zmq.Context.instance(), hash_core.endpoint, identity=RELAYED_IDENTITY_PREFIX + b"router"
    )
    try:
        await relayed.send(ClientFrame(hello=Hello(protocol_version=PROTOCOL_VERSION)).SerializeToString())
        call = Call(call_id="1", method="WatchKvEvents", request=request)
        await relayed.send(ClientFrame(call=call).SerializeToString())
        async with asyncio.timeout(LONG_S):
            while not (frame := EngineFrame.FromString(await relayed.receive())).call_results:
                pass
    finally:
        relayed.close()
    assert frame.call_results[0].status.code == grpc.StatusCode.PERMISSION_DENIED.value[0]


async def test_evicted_blocks_are_told(client: ZmqEngineClient) -> None:
    blocks = watch(client)
    await blocks.read()
    told = 0
    for start in range(0, 600, 60):  # 10 x 16 pages through a pool of 64
        latest = await cached_by(client, list(range(start, start + 60)))
        while not latest <= blocks.hashes:
            removed = [event.removed for event in (await blocks.read()).events]
            told += sum(len(one.block_hashes) for one in removed)
        assert len(blocks.hashes) <= 64
    assert blocks.snapshots == 1 and told > 0


async def test_a_watch_goes_on_where_it_ended(client: ZmqEngineClient) -> None:
    first = watch(client)
    await first.read()
    known = await cached_by(client, list(range(20)))
    await first.read_until(known)
    known |= await cached_by(client, list(range(50, 70)))
    second = watch(client, from_sequence(first.newest.sequence + 1))
    second.hashes = first.hashes
    await second.read_until(known)
    assert second.snapshots == 0


async def test_who_is_too_late_gets_a_snapshot_and_goes_on(
    hash_core: HashCore, client: ZmqEngineClient
) -> None:
    hash_core.core.kv_events._most_kept_bytes = 300
    blocks = watch(client)
    await blocks.read()
    known: set[int] = set()
    for start in range(0, 160, 20):  # nothing is read meanwhile
        known |= await cached_by(client, list(range(start, start + 20)))
    assert hash_core.core.kv_events.kept_bytes <= 300
    await blocks.read_until(known)
    assert blocks.snapshots == 2
    known |= await cached_by(client, list(range(500, 508)))
    await blocks.read_until(known)
    assert blocks.snapshots == 2


@pytest.mark.parametrize("start", [0, 1, 2**64 - 1])
async def test_an_unknown_start_gets_a_snapshot(client: ZmqEngineClient, start: int) -> None:
    known = await cached_by(client, list(range(20)))
    blocks = watch(client, from_sequence(start))
    await blocks.read()
    assert blocks.hashes == known and blocks.snapshots == 1


async def test_another_instance_begins_with_a_snapshot(tmp_path: Path) -> None:
    last: int | None = None
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        core = HashCore(folder)
        client = ZmqEngineClient(core.endpoint, peer_name="test")
        try:
            known = await cached_by(client, list(range(number, number + 20)))
            blocks = watch(client, b"" if last is None else from_sequence(last + 1))
            await blocks.read()
            assert (blocks.snapshots, blocks.hashes) == (1, known)
            assert last is None or blocks.newest.sequence > last
            last = blocks.newest.sequence
        finally:
            await client.close()
            core.stop()


async def test_watchers_that_leave_are_forgotten_and_too_many_are_refused(
    hash_core: HashCore, client: ZmqEngineClient
) -> None:
    blocks = watch(client)
    await blocks.read()
    waiting = from_sequence(blocks.newest.sequence + 1)
    deadline = time.monotonic() + LONG_S

    async def refused_of_one_too_many(reader: ZmqEngineClient) -> int:
        """Watch 257 times and leave; calls of one connection arrive in order, and so do its farewells."""
        calls = [
            asyncio.create_task(reader.call("WatchKvEvents", waiting, timeout_s=None)) for _ in range(257)
        ]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        await reader.load()  # answered after all of them
        refused = [call.exception() for call in calls if call.done()]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert {getattr(error, "code", None) for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        return len(refused)

    for _ in range(2):
        reader = ZmqEngineClient(hash_core.endpoint, peer_name="reader")
        try:
            while await refused_of_one_too_many(reader) != 1:  # those of the reader before may still be there
                assert time.monotonic() < deadline
            assert await refused_of_one_too_many(reader) == 1
            last = asyncio.create_task(reader.call("WatchKvEvents", waiting, timeout_s=None))
            await reader.load()
        finally:
            await reader.close()
        with pytest.raises(EngineError, match="closed"):
            await last
    known = await cached_by(client, list(range(20)))
    await blocks.read_until(known)


async def test_a_request_that_cannot_be_read_is_refused(client: ZmqEngineClient) -> None:
    with pytest.raises(EngineError, match="WatchKvEventsRequest") as caught:
        await client.call("WatchKvEvents", b"\xff\xff")
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
