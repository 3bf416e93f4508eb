"""vLLM's KV events over ZeroMQ: read by its format, and by our own proxy's consumer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio

from rhizome.engine.v1.engine_admin_service_pb2 import FlushCacheRequest
from rhizome_engine.compat import kv_publisher
from rhizome_engine.compat.kv_endpoint import KvEventSettings
from rhizome_engine.compat.kv_publisher import KvEventPublisher
from rhizome_engine.front.core_link import CoreLink, loading_error
from rhizome_testing.hash_core import HashCore, all_events, token_request, tokens_in
from rhizome_transport.block_hashes import block_hashes

PAGE_SIZE = 4
LONG_S = 20.0


class BlockStored(msgspec.Struct, tag=True):
    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None


class BlockRemoved(msgspec.Struct, tag=True):
    block_hashes: list[int | bytes]
    medium: str | None


class AllBlocksCleared(msgspec.Struct, tag=True):
    pass


class KvEventBatch(msgspec.Struct):
    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None


class Reader:
    """What a router does that was written for vLLM: typed, so what does not fit is an error."""

    def __init__(self) -> None:
        self.decoder = msgspec.msgpack.Decoder(KvEventBatch)
        self.tokens: dict[int, list[int]] = {}
        self.newest = -1
        self.cleared = 0

    def apply(self, number: bytes, payload: bytes) -> None:
        sequence = int.from_bytes(number, "big")
        assert sequence == self.newest + 1 or self.newest == -1
        self.newest = sequence
        batch = self.decoder.decode(payload)
        assert batch.ts > 1.6e9 and batch.data_parallel_rank == 0
        for event in batch.events:
            if isinstance(event, AllBlocksCleared):
                self.tokens.clear()
                self.cleared += 1
            elif isinstance(event, BlockRemoved):
                for one in event.block_hashes:
                    del self.tokens[one]
            else:
                assert len(event.token_ids) == len(event.block_hashes) * event.block_size
                parent = event.parent_block_hash
                before = [] if parent is None else self.tokens[parent]
                for place, one in enumerate(event.block_hashes):
                    start = place * event.block_size
                    before = self.tokens[one] = [*before, *event.token_ids[start : start + event.block_size]]


def subscribed(context: zmq.asyncio.Context, publisher: KvEventPublisher, topic: bytes) -> Any:
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, topic)
    socket.connect(publisher.endpoint)
    return socket


async def replayed(endpoint: str, start: bytes) -> list[tuple[bytes, bytes]]:
    """What comes back for a number, without the end that is announced."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.DEALER)
    try:
        socket.connect(endpoint)
        await socket.send_multipart((b"", start))
        batches: list[tuple[bytes, bytes]] = []
        async with asyncio.timeout(LONG_S):
            while True:
                empty, number, payload = await socket.recv_multipart()
                assert empty == b""
                if number == b"\xff" * 8:
                    assert payload == b""
                    return batches
                batches.append((number, payload))
    finally:
        context.destroy(linger=0)


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


class Life:
    """A core that can end and be followed by another, and the link that a front has to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.core: HashCore | None = None
        self.current: CoreLink | None = None

    def begin(self) -> None:
        self.core = HashCore(self.folder)
        self.current = CoreLink(self.core.endpoint)

    async def end(self) -> None:
        core, link = self.core, self.current
        self.core = self.current = None
        if core is not None and link is not None:
            await link.close()
            await asyncio.to_thread(core.stop)

    def link(self) -> CoreLink:
        if self.current is None:
            raise loading_error()
        return self.current

    async def ask(self, prompt: list[int], namespace: str = "") -> set[int]:
        """Run a request; the hashes of the blocks that it leaves in the cache."""
        request = token_request(prompt)
        request.cache_namespace = namespace
        tokens = prompt + tokens_in(await all_events(self.link().client, request))
        return {*block_hashes(tokens[:-1], PAGE_SIZE, namespace).tolist()}


@pytest.fixture
async def life(tmp_path: Path) -> AsyncIterator[Life]:
    one = Life(tmp_path)
    one.begin()
    yield one
    await one.end()


Publish = Callable[..., Any]


@pytest.fixture
def publish(life: Life) -> Publish:
    @asynccontextmanager
    async def start(**changed: Any) -> AsyncIterator[KvEventPublisher]:
        free = "tcp://127.0.0.1:*"
        options = {"endpoint": free, "replay_endpoint": free, "form": "maps", **changed}
        publisher = KvEventPublisher(KvEventSettings(**options), life.link)
        publisher.start()
        try:
            yield publisher
        finally:
            await publisher.stop()

    return start


async def read_until(reader: Reader, publisher: KvEventPublisher, wanted: set[int]) -> None:
    """By replay alone: whatever was published before anybody listened is there."""
    async with asyncio.timeout(LONG_S):
        while {*reader.tokens} != wanted:
            for one, payload in await replayed(publisher.replay_endpoint, number(reader.newest + 1)):
                reader.apply(one, payload)


async def test_a_reader_of_vllms_format_knows_blocks_and_tokens(life: Life, publish: Publish) -> None:
    known = await life.ask([1, 2, 3, 4, 5, 6, 7, 8])
    async with publish(topic="kv@here@hash") as publisher:
        reader = Reader()
        await read_until(reader, publisher, known)
        assert reader.cleared == 1, "the first batch is a snapshot"
        context = zmq.asyncio.Context()
        subscriber, other = subscribed(context, publisher, b"kv@"), subscribed(context, publisher, b"other")
        try:
            tenants = await life.ask([1, 2, 3, 4, 5, 6, 7, 8], "tenant")
            live = 0
            for start in range(20, 100, 10):
                known |= await life.ask([1, 2, 3, 4, *range(start, start + 8)])
            await read_until(reader, publisher, known)
            assert not tenants & {*reader.tokens}
            for one, tokens in reader.tokens.items():
                assert block_hashes(tokens, PAGE_SIZE, "").tolist()[-1] == one
            while not live:  # the subscription takes a moment to arrive
                known |= await life.ask([*range(reader.newest, reader.newest + 8)])
                with suppress(zmq.Again):
                    topic, first, _ = await subscriber.recv_multipart(zmq.NOBLOCK)
                    assert topic == b"kv@here@hash"
                    live = int.from_bytes(first, "big") + 1
                await read_until(reader, publisher, known)
            assert live <= reader.newest + 1
            with pytest.raises(zmq.Again):
                await other.recv_multipart(zmq.NOBLOCK)
        finally:
            context.destroy(linger=0)
        await life.link().client.call("FlushCache", FlushCacheRequest().SerializeToString())
        await read_until(reader, publisher, set())
        assert reader.cleared == 2


async def test_evicted_blocks_are_told(life: Life, publish: Publish) -> None:
    async with publish() as publisher:
        reader = Reader()
        latest: set[int] = set()
        for start in range(0, 600, 60):  # 10 x 16 pages through a pool of 64
            latest = await life.ask(list(range(start, start + 60)))
        async with asyncio.timeout(LONG_S):
            while not latest <= {*reader.tokens}:
                for one, payload in await replayed(publisher.replay_endpoint, number(reader.newest + 1)):
                    reader.apply(one, payload)
        assert len(reader.tokens) <= 64


async def test_who_comes_too_late_gets_a_snapshot_under_the_newest_number(
    life: Life, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_publisher, "_MOST_KEPT", 2)
    async with publish() as publisher:
        reader = Reader()
        known: set[int] = set()
        for start in range(0, 80, 8):
            known |= await life.ask(list(range(start, start + 8)))
            await read_until(reader, publisher, known)
        assert reader.newest >= 10
        ((newest, payload),) = await replayed(publisher.replay_endpoint, number(0))
        late = Reader()
        late.apply(newest, payload)
        assert late.tokens == reader.tokens and late.newest == reader.newest
        assert await replayed(publisher.replay_endpoint, number(reader.newest + 1)) == []
        ((last, _),) = await replayed(publisher.replay_endpoint, number(reader.newest))
        assert last == number(reader.newest)


async def test_a_lost_core_is_an_empty_cache_and_numbers_go_on(life: Life, publish: Publish) -> None:
    async with publish() as publisher:
        reader = Reader()
        await read_until(reader, publisher, await life.ask(list(range(20))))
        before = reader.newest
        await life.end()
        await read_until(reader, publisher, set())
        assert reader.newest == before + 1
        life.begin()
        await read_until(reader, publisher, await life.ask(list(range(40, 60))))
        assert reader.newest > before + 1


async def test_requests_that_are_none_are_ignored(life: Life, publish: Publish) -> None:
    known = await life.ask(list(range(20)))
    async with publish() as publisher:
        context = zmq.asyncio.Context()
        try:
            for frames in ((b"",), (b"", b"short"), (b"full", number(0)), (b"", number(0), b"more")):
                socket = context.socket(zmq.DEALER)
                socket.connect(publisher.replay_endpoint)
                await socket.send_multipart(frames)
            await read_until(Reader(), publisher, known)
        finally:
            context.destroy(linger=0)


async def test_lists_are_what_older_readers_know(life: Life, publish: Publish) -> None:
    known = await life.ask([1, 2, 3, 4, 5, 6, 7, 8])
    async with publish(form="lists") as publisher:
        batches: list[tuple[bytes, bytes]] = []
        async with asyncio.timeout(LONG_S):
            while not batches:
                batches = await replayed(publisher.replay_endpoint, number(0))
        time_s, events, rank = msgspec.msgpack.decode(batches[0][1])
        assert time_s > 1.6e9 and rank == 0
        cleared, *runs = events
        assert cleared == ["AllBlocksCleared"]
        told: set[int] = set()
        for name, hashes, parent, tokens, size, lora, medium in runs:
            assert (name, size, lora, medium) == ("BlockStored", PAGE_SIZE, None, "GPU")
            assert parent is None or parent in told
            assert len(tokens) == PAGE_SIZE * len(hashes)
            told |= {*hashes}
        assert told == known


async def test_it_connects_to_a_reader_that_has_bound(life: Life, publish: Publish) -> None:
    context = zmq.asyncio.Context()
    sub = context.socket(zmq.SUB)
    sub.setsockopt(zmq.SUBSCRIBE, b"")
    port = sub.bind_to_random_port("tcp://127.0.0.1")
    try:
        async with publish(endpoint=f"tcp://127.0.0.1:{port}", connect=True):
            async with asyncio.timeout(LONG_S):
                for start in range(0, 10_000, 8):
                    await life.ask(list(range(start % 900, start % 900 + 8)))
                    with suppress(zmq.Again):
                        frames = await sub.recv_multipart(zmq.NOBLOCK)
                        break
        assert len(frames) == 3
    finally:
        context.destroy(linger=0)


async def test_an_endpoint_that_is_taken_is_an_error_that_names_it(life: Life, publish: Publish) -> None:
    async with publish() as publisher:
        with pytest.raises(OSError, match="cannot publish KV events on tcp:"):
            async with publish(endpoint=publisher.endpoint):
                pass
