"""vLLM's KV events from a publisher on real sockets that speaks both of its dialects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
import zmq.asyncio

from rhizome_backends.vllm_events import follow_vllm
from rhizome_routing.policies.ask import Ask
from rhizome_routing.prefix.index import PrefixIndex
from rhizome_routing.prefix.vllm_blocks import VllmBlocks

SIZE = 64
IDS = np.random.default_rng(0).integers(0, 50_000, SIZE * 6, dtype=np.uint32)
CHAIN = Ask(IDS).chain(SIZE).hashes


def store(first: int, last: int, **fields: Any) -> dict[str, Any]:
    """Blocks `first` to `last` of IDS under vLLM's own names."""
    return {
        "type": "BlockStored",
        "block_hashes": [f"vllm-{n}".encode() for n in range(first, last)],
        "parent_block_hash": f"vllm-{first - 1}".encode() if first else None,
        "token_ids": IDS[first * SIZE : last * SIZE].tolist(),
        "block_size": SIZE,
        "lora_id": None,
        "medium": "GPU",
        **fields,
    }


def remove(*blocks: int, **fields: Any) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": [f"vllm-{n}".encode() for n in blocks], **fields}


def as_map(*events: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode({"ts": 0.0, "events": events})


def as_lists(*events: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode([0.0, [list(one.values()) for one in events], 0])


class Publisher:
    """Publishes batches, and sends again those that it kept."""

    def __init__(self, keep: bool = True) -> None:
        self.context = zmq.asyncio.Context()
        self.pub, self.router = self.context.socket(zmq.XPUB), self.context.socket(zmq.ROUTER)
        ports = [one.bind_to_random_port("tcp://127.0.0.1") for one in (self.pub, self.router)]
        self.endpoint, self.replay_endpoint = (f"tcp://127.0.0.1:{port}" for port in ports)
        self.keep = keep
        self.kept: list[tuple[bytes, bytes]] = []
        self.replays = 0
        self.task = asyncio.create_task(self._replay())

    async def wait_subscribed(self) -> None:
        async with asyncio.timeout(10):
            assert await self.pub.recv() == b"\x01"

    async def send(self, number: int, payload: bytes, lose: bool = False) -> None:
        frames = number.to_bytes(8, "big"), payload
        if self.keep:
            self.kept.append(frames)
        if not lose:
            await self.pub.send_multipart((b"kv", *frames))

    async def _replay(self) -> None:
        while True:
            peer, empty, start = await self.router.recv_multipart()
            self.replays += 1
            for frames in self.kept:
                if frames[0] >= start:
                    await self.router.send_multipart((peer, empty, *frames))
            await self.router.send_multipart((peer, empty, b"\xff" * 8, b""))

    def close(self) -> None:
        self.task.cancel()
        self.context.destroy(linger=0)


@pytest.fixture
async def publisher() -> AsyncIterator[Publisher]:
    one = Publisher()
    yield one
    one.close()


@pytest.fixture
async def index(publisher) -> AsyncIterator[PrefixIndex]:
    index = PrefixIndex()
    following = asyncio.create_task(
        follow_vllm(index, "v", publisher.endpoint, replay_endpoint=publisher.replay_endpoint)
    )
    await publisher.wait_subscribed()
    yield index
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_batches_of_both_dialects_are_followed(publisher, index, eventually):
    await publisher.send(0, as_map(store(0, 3)))
    await publisher.send(1, as_lists(store(3, 6)))
    await eventually(lambda: index.match(CHAIN) == {"v": 6})
    assert index.view("v").exact
    await publisher.send(2, as_lists(remove(4, 5)))
    await eventually(lambda: index.match(CHAIN) == {"v": 4})
    await publisher.send(3, as_map({"type": "AllBlocksCleared"}))
    await eventually(lambda: len(index) == 0)
    assert publisher.replays == 0


async def test_lost_batches_are_sent_again(publisher, index, eventually):
    await publisher.send(0, as_map(store(0, 2)), lose=True)
    await publisher.send(1, as_map(store(2, 3)))
    await eventually(lambda: index.match(CHAIN) == {"v": 3})
    await publisher.send(2, as_map(store(3, 5)), lose=True)
    await publisher.send(3, as_map(remove(4)), lose=True)
    await publisher.send(4, as_map(store(4, 6)))
    await eventually(lambda: index.match(CHAIN) == {"v": 6})
    assert index.view("v").exact
    assert publisher.replays == 2


async def test_what_cannot_be_sent_again_makes_the_view_a_guess(publisher, index, eventually):
    publisher.keep = False
    await publisher.send(0, as_map(store(0, 1)))
    await eventually(lambda: index.view("v").exact)
    await publisher.send(5, as_map(store(1, 2), store(5, 6)))  # the parent of block 5 is unknown
    await eventually(lambda: index.match(CHAIN) == {"v": 2})
    assert not index.view("v").exact
    assert index.match(CHAIN[5:]) == {}
    await publisher.send(6, as_map({"type": "AllBlocksCleared"}))
    await eventually(lambda: index.view("v").exact)


async def test_a_server_that_was_started_anew_has_an_empty_cache(publisher, index, eventually):
    for number in range(3):
        await publisher.send(number, as_map(store(number, number + 1)))
    await eventually(lambda: index.match(CHAIN) == {"v": 3})
    publisher.kept.clear()
    await publisher.send(3, as_map(), lose=True)
    await publisher.send(4, as_map(store(3, 4)))
    await eventually(lambda: index.match(CHAIN) == {"v": 4})
    publisher.kept.clear()
    await publisher.send(0, as_map(store(0, 1)))
    await eventually(lambda: index.match(CHAIN) == {"v": 1})
    assert index.view("v").exact


async def test_a_message_that_is_no_batch_does_not_end_it(publisher, index, eventually):
    await publisher.send(0, as_map(store(0, 1)))
    await publisher.send(1, b"\xc1 no MessagePack")
    await publisher.send(2, as_map(store(1, 2)))
    await eventually(lambda: index.match(CHAIN) == {"v": 2})
    assert not index.view("v").exact


@pytest.mark.parametrize(
    "event",
    [
        store(0, 1, lora_name="adapter"),
        store(0, 1, extra_keys=[["salt"]]),
        store(0, 1, medium="CPU"),
        store(0, 1, group_idx=1),
    ],
)
def test_blocks_that_no_prompt_would_match_are_left_out(event):
    index = PrefixIndex()
    VllmBlocks(index, "v").apply(as_map(event))
    assert len(index) == 0


def test_a_block_that_leaves_other_memory_stays_in_the_gpus():
    index = PrefixIndex()
    blocks = VllmBlocks(index, "v")
    blocks.apply(as_map(store(0, 2), remove(1, medium="CPU"), remove(1, group_idx=2)))
    assert index.match(CHAIN) == {"v": 2}
    blocks.apply(as_map(remove(1, medium="GPU")))
    assert index.match(CHAIN) == {"v": 1}
    assert len(blocks) == 1
