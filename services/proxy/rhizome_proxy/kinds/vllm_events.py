"""Following vLLM's KV events over ZeroMQ: PUB with numbered batches, ROUTER to have old ones sent again.

vLLM's block hashes mean nothing outside it, but an event that stores blocks has their tokens: they are hashed
again in our way, chained to what their parent was, and vLLM's hash is kept only as the name by which the
block goes.

The view is exact only if no batch is missing, from the first one of the instance on. Where a gap is larger
than what vLLM can send again, or it has no replay socket, blocks whose parents are unknown cannot be named:
the view stays a guess from what was sent there, which the events still improve, until the cache is cleared or
vLLM started anew.

Blocks of adapters, of prompts with images or salts, in other memory than the GPU's, and of other groups than
the first (layers with a sliding window) are left out: a router knows nothing that would match them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any, Final

import msgspec
import zmq
import zmq.asyncio

from rhizome_routing.prefix.chain import sampled
from rhizome_routing.prefix.index import PrefixIndex
from rhizome_transport.block_hashes import extend_hashes, root_hash

_REPLAY_TIMEOUT_S: Final = 2.0
_QUEUED_BATCHES: Final = 100_000
_MOST_BLOCKS: Final = 1 << 20
"""Who claims to hold more is not believed: it would cost us 250 bytes for each."""

_STORED: Final = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium")
_STORED_LATER: Final = ("lora_name", "extra_keys", "group_idx")
_REMOVED: Final = ("block_hashes", "medium", "group_idx")
_FIELDS: Final = {"BlockStored": _STORED + _STORED_LATER, "BlockRemoved": _REMOVED, "AllBlocksCleared": ()}
_decode = msgspec.msgpack.Decoder().decode
_log = logging.getLogger(__name__)


class VllmBlocks:
    """What each of vLLM's blocks is called in a backend's view."""

    def __init__(self, index: PrefixIndex, name: str) -> None:
        self._index = index
        self._name = name
        self._names: dict[int | bytes, tuple[int, int]] = {}
        self._root = root_hash("")

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self._names)

    def forget(self) -> None:
        """The cache is empty."""
        self._names.clear()
        self._index.cleared(self._name)

    def apply(self, payload: bytes) -> bool:
        """Apply a batch; whether all that is cached is known by it, because the cache was emptied.

        Raises:
            ValueError: it is none; also LookupError, TypeError and AttributeError.
        """
        emptied = False
        batch = _decode(payload)
        events = batch["events"] if isinstance(batch, dict) else batch[1]
        for event in events:
            # Versions differ in whether an event is a map or a list, with its name under `type` or in front.
            if isinstance(event, dict):
                kind, fields = event["type"], event
            else:
                kind, fields = event[0], dict(zip(_FIELDS.get(event[0], ()), event[1:], strict=False))
            if kind == "AllBlocksCleared":
                self.forget()
                emptied = True
            elif fields.get("medium") in (None, "GPU") and not fields.get("group_idx"):
                if kind == "BlockStored":
                    self._stored(fields)
                elif kind == "BlockRemoved":
                    self._removed(fields["block_hashes"])
        return emptied

    def _stored(self, fields: dict[str, Any]) -> None:
        if fields.get("lora_id") or fields.get("lora_name") or any(fields.get("extra_keys") or ()):
            return
        parent, size = fields["parent_block_hash"], fields["block_size"]
        before = (self._root, 0) if parent is None else self._names.get(parent)
        if before is None:
            return
        if len(self._names) > _MOST_BLOCKS:
            self.forget()
            raise ValueError(f"more than {_MOST_BLOCKS} blocks are said to be cached")
        hashes: list[int] = extend_hashes(fields["token_ids"], size, *before).tolist()
        for place, (theirs, ours) in enumerate(
            zip(fields["block_hashes"], hashes, strict=True), before[1] + 1
        ):
            self._names[theirs] = ours, place
        if size != self._index.view(self._name).block_size:
            self._index.set_pool(self._name, None, size)
        self._index.stored(self._name, sampled(hashes, size))

    def _removed(self, theirs: list[int | bytes]) -> None:
        ours = [named[0] for one in theirs if (named := self._names.pop(one, None)) is not None]
        self._index.removed(self._name, sampled(ours, self._index.view(self._name).block_size))


async def follow_vllm(
    index: PrefixIndex, name: str, endpoint: str, *, replay_endpoint: str = "", topic: str = ""
) -> None:
    """Follow a vLLM server's events until cancelled; it may come and go.

    Args:
        index: holds the view.
        name: of the backend.
        endpoint: where it publishes, such as `tcp://vllm:5557`.
        replay_endpoint: where it sends batches again; empty for nowhere.
        topic: what it publishes under; empty takes all.
    """
    context = zmq.asyncio.Context()
    blocks = VllmBlocks(index, name)
    following = 0  # the number that comes next
    joined = (
        0  # numbers from here on come, or have come, on the PUB socket; a smaller one is a new instance's
    )
    whole = True  # no batch is missing
    try:
        socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.RCVHWM, _QUEUED_BATCHES)
        socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
        socket.connect(endpoint)
        while True:
            frames = await socket.recv_multipart()
            sequence = int.from_bytes(frames[-2], "big")
            if sequence < joined:
                following, joined, whole = 0, 0, True
            if following == 0:
                blocks.forget()
            try:
                if sequence > following:
                    joined = sequence
                    async for replayed, payload in _replay(context, replay_endpoint, following):
                        if replayed >= following:
                            whole = blocks.apply(payload) or (whole and replayed == following)
                            following = replayed + 1
                if sequence >= following:
                    whole = blocks.apply(frames[-1]) or (whole and sequence == following)
                    following = sequence + 1
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                _log.warning("KV events of backend %s cannot be read: %s", name, error)
                following, whole = max(following, sequence + 1), False
            index.set_exact(name, whole)
    finally:
        index.set_exact(name, False)
        context.destroy(linger=0)


async def _replay(
    context: zmq.asyncio.Context, endpoint: str, start: int
) -> AsyncGenerator[tuple[int, bytes], None]:
    """Batches from number `start` on, as far as the server still has them."""
    if not endpoint:
        return
    socket = context.socket(zmq.DEALER)
    try:
        socket.connect(endpoint)
        await socket.send_multipart((b"", start.to_bytes(8, "big")))
        while True:
            async with asyncio.timeout(_REPLAY_TIMEOUT_S):
                frames = await socket.recv_multipart()
            if not frames[-1]:
                return
            yield int.from_bytes(frames[-2], "big"), frames[-1]
    except TimeoutError:
        return
    finally:
        socket.close(linger=0)
