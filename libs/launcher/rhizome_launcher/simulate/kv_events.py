"""The KV cache's changes over ZeroMQ, as vLLM publishes them.

A message has three frames: the topic, the sequence number as eight bytes big-endian, and MessagePack: a list
of the time, the events and the data-parallel rank. Version 0.29 writes an event as a map with its name under
`type`, older ones wrote a list that begins with the name; fields that hold their default are left out.

Who missed messages asks a second socket for them: a number as eight bytes big-endian gets that message and
those after it, each as number and payload behind an empty frame, and at last the number -1 without a payload.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import Any, Final

import msgspec
import zmq

from rhizome_launcher.simulate.block_pool import BlockPool, Change, Stored

_MEDIUM: Final = "GPU"
_RANK: Final = 0
_REMEMBERED: Final = 10_000
_END: Final = (-1).to_bytes(8, "big", signed=True)


class KvEventPublisher:
    """Publishes what changed in one pool. Must be made inside the running loop.

    Args:
        endpoint: `tcp://127.0.0.1:5557` or `ipc:///path`; bound here.
        pool: a watched one.
        block_size: tokens per block.
        replay: endpoint of the second socket; none when empty.
        as_lists: events in the older form.
        topic: the first frame.

    Raises:
        zmq.ZMQError: the endpoint is taken or no endpoint at all.
    """

    def __init__(
        self,
        endpoint: str,
        pool: BlockPool,
        block_size: int,
        *,
        replay: str = "",
        as_lists: bool = False,
        topic: str = "",
    ) -> None:
        self._pool = pool
        self._block_size = block_size
        self._as_lists = as_lists
        self._topic = topic.encode()
        self._sequence = count()
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.PUB)
        self._socket.linger = 0
        self._socket.sndhwm = 100_000
        self._sent: deque[tuple[bytes, bytes]] = deque(maxlen=_REMEMBERED)
        self._replay = self._context.socket(zmq.ROUTER)
        self._loop = asyncio.get_running_loop()
        try:
            self._socket.bind(endpoint)
            if replay:
                self._replay.bind(replay)
        except zmq.ZMQError:
            self._context.destroy(linger=0)
            raise
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.replay_endpoint = self._replay.getsockopt_string(zmq.LAST_ENDPOINT) if replay else ""
        self._loop.add_reader(self._replay.fileno(), self._send_again)

    def publish(self) -> None:
        """Send what changed since the last time, if anything did."""
        if not self._pool.changes:
            return
        changes, self._pool.changes = self._pool.changes, []
        events = [self._event(change) for change in changes]
        payload = msgspec.msgpack.encode([time.time(), events, _RANK])
        number = next(self._sequence).to_bytes(8, "big")
        self._sent.append((number, payload))
        self._socket.send_multipart((self._topic, number, payload))

    def close(self) -> None:
        """Free the endpoints."""
        self._loop.remove_reader(self._replay.fileno())
        self._context.destroy(linger=0)

    def _send_again(self) -> None:
        # The descriptor tells of changes only: everything has to be read.
        while True:
            try:
                frames = self._replay.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(frames) == 3:
                client, empty, first = frames
                for number, payload in self._sent:
                    if number >= first:
                        self._replay.send_multipart((client, empty, number, payload))
                self._replay.send_multipart((client, empty, _END, b""))

    def _event(self, change: Change) -> Any:
        name = "BlockStored" if isinstance(change, Stored) else "BlockRemoved"
        fields = dict(self._fields(change))
        return [name, *fields.values()] if self._as_lists else {"type": name, **fields}

    def _fields(self, change: Change) -> Iterator[tuple[str, Any]]:
        yield "block_hashes", change.hashes
        if isinstance(change, Stored):
            yield "parent_block_hash", change.parent
            yield "token_ids", change.token_ids
            yield "block_size", self._block_size
            yield "lora_id", None
            yield "medium", _MEDIUM
            if not self._as_lists:
                yield "lora_name", None
        else:
            yield "medium", _MEDIUM
