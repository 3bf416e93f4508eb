from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
import zmq.asyncio
from tests.launcher.simulate.conftest import completion, exchange

from rhizome_launcher.simulate.block_pool import BlockPool, Removed
from rhizome_launcher.simulate.flavours import FLAVOURS
from rhizome_launcher.simulate.fleet import nth_endpoint
from rhizome_launcher.simulate.http.server import HttpServer
from rhizome_launcher.simulate.kv_events import KvEventPublisher
from rhizome_launcher.simulate.physics import Physics


class BlockStored(msgspec.Struct, tag=True, omit_defaults=True):
    """The fields that vLLM's own structure names, in their order."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None = None


class BlockRemoved(msgspec.Struct, tag=True, omit_defaults=True):
    block_hashes: list[int]
    medium: str | None


class StoredList(BlockStored, array_like=True, tag="BlockStored"):
    """The older form."""


class RemovedList(BlockRemoved, array_like=True, tag="BlockRemoved"):
    """The older form."""


class Batch(msgspec.Struct, array_like=True):
    ts: float
    events: list[BlockStored | BlockRemoved]
    data_parallel_rank: int | None = None


class ListBatch(msgspec.Struct, array_like=True):
    ts: float
    events: list[StoredList | RemovedList]
    data_parallel_rank: int | None = None


@pytest.mark.parametrize(("as_lists", "form"), [(False, Batch), (True, ListBatch)])
async def test_events_say_what_is_cached_as_vllm_does(tmp_path: Path, as_lists: bool, form: Any) -> None:
    physics = Physics(kv_blocks=8, block_size=16, prefill_tokens_per_s=1e6)
    server = HttpServer(FLAVOURS["vllm"], physics, watched=True)
    publisher = KvEventPublisher(f"ipc://{tmp_path}/kv", server.engine.pool, 16, as_lists=as_lists)
    server.after_beat = publisher.publish
    await server.start()
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    socket.subscribe(b"")
    socket.connect(publisher.endpoint)
    begun = 0
    while not await socket.poll(20):  # messages before the subscription are lost
        server.engine.pool.changes.append(Removed((1,)))
        publisher.publish()
        begun += 1
    while int.from_bytes((await socket.recv_multipart())[1], "big") < begun - 1:
        pass
    told: dict[int, list[int]] = {}
    parents: dict[int, int | None] = {}
    removed = 0
    for number, ids in enumerate((range(100, 164), range(200, 264), range(300, 316))):
        fields = completion(prompt=list(ids), max_tokens=1)
        assert (await exchange(server, "POST", "/v1/completions", fields))[0] == 200
        seen = set(server.engine.pool.hashes())
        while set(told) != seen:
            assert await socket.poll(5000)
            topic, sequence, payload = await socket.recv_multipart()
            assert topic == b""
            assert int.from_bytes(sequence, "big") >= begun + number
            batch = msgspec.msgpack.decode(payload, type=form)
            assert batch.data_parallel_rank == 0
            for event in batch.events:
                assert event.medium == "GPU"
                if isinstance(event, BlockRemoved):
                    removed += len(event.block_hashes)
                    for block in event.block_hashes:
                        del told[block]
                    continue
                parent = event.parent_block_hash
                for at, block in enumerate(event.block_hashes):
                    told[block] = event.token_ids[at * 16 : (at + 1) * 16]
                    parents[block], parent = parent, block
    assert removed > 0
    assert list(range(300, 316)) in told.values()
    assert all(parent is None or parent in parents for parent in parents.values())
    context.destroy(linger=0)
    publisher.close()
    server.stop()


async def test_who_missed_messages_gets_them_again(tmp_path: Path) -> None:
    pool = BlockPool(8, watched=True)
    endpoints = (f"ipc://{tmp_path}/kv", f"ipc://{tmp_path}/again")
    publisher = KvEventPublisher(endpoints[0], pool, 16, replay=endpoints[1])
    for block in range(5):
        assert pool.reserve((), 1)
        pool.share(None, [block], [block] * 16)
        publisher.publish()
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(publisher.replay_endpoint)
    for _ in range(2):
        await socket.send_multipart((b"", (3).to_bytes(8, "big")))
        got: list[list[bytes]] = []
        while not got or got[-1][1] != b"\xff" * 8:
            assert await socket.poll(5000)
            got.append(await socket.recv_multipart())
        assert [int.from_bytes(frames[1], "big", signed=True) for frames in got] == [3, 4, -1]
        assert [
            msgspec.msgpack.decode(frames[2], type=Batch).events[0].block_hashes for frames in got[:-1]
        ] == [[3], [4]]
    context.destroy(linger=0)
    publisher.close()


def test_several_servers_have_an_endpoint_each() -> None:
    assert [nth_endpoint("tcp://127.0.0.1:5557", n) for n in (0, 2)] == [
        "tcp://127.0.0.1:5557",
        "tcp://127.0.0.1:5559",
    ]
    assert [nth_endpoint("ipc:///x/kv", n) for n in (0, 1)] == ["ipc:///x/kv", "ipc:///x/kv1"]
    assert nth_endpoint("tcp://127.0.0.1:0", 3) == "tcp://127.0.0.1:0"
