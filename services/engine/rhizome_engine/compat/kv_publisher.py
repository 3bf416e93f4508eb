"""Publishes the prefix cache's changes over ZeroMQ, the way vLLM does.

    PUB     topic, number as eight bytes big-endian, batch (`vllm_kv_batch`)
    ROUTER  a number comes; that batch and those after it go back, each behind an empty frame as number and
            batch, and at last the number -1 without a batch

Numbers begin with 0 where the front begins; the first batch is a snapshot. When the core is lost its cache is
told to be empty, and the next core's snapshot follows with the next number. Who asks for a number that is no
longer kept gets a snapshot under the newest number instead, so that a late reader knows everything, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing

import zmq
import zmq.asyncio

from rhizome.engine.v1.engine_service_pb2 import KvEvent, WatchKvEventsRequest, WatchKvEventsResponse
from rhizome_engine.compat.kv_endpoint import KvEventSettings
from rhizome_engine.compat.vllm_kv_batch import cleared_event, encode_batch
from rhizome_engine.front.core_link import CoreLink
from rhizome_transport.errors import EngineError
from rhizome_transport.kv_watch import watch_kv_events

_MOST_KEPT = 10_000
_MOST_KEPT_BYTES = 64 << 20
_MOST_QUEUED = 10_000
"""For one slow reader; what is more is lost to it, and the numbers tell."""
_MOST_REQUEST_BYTES = 4096
_NO_CORE_PAUSE_S = 0.1
_TURN = 64
"""Batches sent again before others on this loop have a turn."""
_END = (-1).to_bytes(8, "big", signed=True)

_log = logging.getLogger(__name__)


class KvEventPublisher:
    """Publishes what one engine caches, from `start` to `stop`. Must be made inside the running loop.

    Args:
        settings: where and how.
        link: gives the link to a serving core or raises EngineError.

    Attributes:
        endpoint: where it publishes, with the port that was taken.
        replay_endpoint: where batches are sent again; empty for nowhere.
    """

    def __init__(self, settings: KvEventSettings, link: Callable[[], CoreLink]) -> None:
        self._settings = settings
        self._link = link
        self._topic = settings.topic.encode()
        self._next = 0
        self._kept: deque[tuple[bytes, bytes]] = deque()
        self._kept_bytes = 0
        self._is_empty = True
        self._context = zmq.asyncio.Context(io_threads=1)
        self._tasks: list[asyncio.Task[None]] = []
        self.endpoint = self.replay_endpoint = ""

    def start(self) -> None:
        """Open the sockets and begin.

        Raises:
            OSError: an endpoint is taken or not of this machine.
        """
        publish, replay = self._context.socket(zmq.PUB), self._context.socket(zmq.ROUTER)
        publish.sndhwm = _MOST_QUEUED
        replay.sndhwm = _MOST_KEPT + 1
        replay.setsockopt(zmq.MAXMSGSIZE, _MOST_REQUEST_BYTES)
        settings = self._settings
        self.endpoint = _open(publish, settings.endpoint, connect=settings.connect)
        self._tasks.append(asyncio.create_task(self._follow(publish)))
        if settings.replay_endpoint:
            self.replay_endpoint = _open(replay, settings.replay_endpoint)
            self._tasks.append(asyncio.create_task(self._answer_replays(replay)))

    async def stop(self) -> None:
        """End and free the endpoints."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._context.destroy(linger=0)

    async def _follow(self, socket: zmq.asyncio.Socket) -> None:
        """Tell what each core tells, one life after the other."""
        while True:
            with contextlib.suppress(EngineError):
                async with aclosing(watch_kv_events(self._call)) as changes:
                    async for message in changes:
                        await self._publish(socket, WatchKvEventsResponse.FromString(message).events)
            if not self._is_empty:
                await self._publish(socket, (cleared_event(),))
            await asyncio.sleep(_NO_CORE_PAUSE_S)

    def _call(self, request: bytes) -> Awaitable[list[bytes]]:
        wanted = WatchKvEventsRequest.FromString(request)
        wanted.with_token_ids = True
        link = self._link()
        return link.ask(link.client.call("WatchKvEvents", wanted.SerializeToString(), timeout_s=None))

    async def _publish(self, socket: zmq.asyncio.Socket, events: Iterable[KvEvent]) -> None:
        payload = encode_batch(events, self._settings.form)
        if payload is None:
            return
        self._is_empty = all(event.HasField("cleared") for event in events)
        number = self._next.to_bytes(8, "big")
        self._next += 1
        self._kept.append((number, payload))
        self._kept_bytes += len(payload)
        while len(self._kept) > _MOST_KEPT or self._kept_bytes > _MOST_KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft()[1])
        await socket.send_multipart((self._topic, number, payload))

    async def _answer_replays(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frames = await socket.recv_multipart()
            if len(frames) != 3 or frames[1] or len(frames[2]) != 8:
                _log.warning("a request for old KV events is not an empty frame and eight bytes; ignored")
                continue
            envelope = frames[:2]
            for turn, (number, payload) in enumerate(await self._since(frames[2]), start=1):
                await socket.send_multipart((*envelope, number, payload))
                if not turn % _TURN:
                    await asyncio.sleep(0)
            await socket.send_multipart((*envelope, _END, b""))

    async def _since(self, first: bytes) -> list[tuple[bytes, bytes]]:
        """The batches from a number on, or a snapshot where the first of them is gone."""
        if self._next and (not self._kept or first < self._kept[0][0]):
            newest = (self._next - 1).to_bytes(8, "big")
            with contextlib.suppress(EngineError):
                answers = await self._call(b"")
                events = WatchKvEventsResponse.FromString(answers[0]).events
                payload = encode_batch(events, self._settings.form)
                if payload is not None:
                    return [(newest, payload)]
        return [batch for batch in self._kept if batch[0] >= first]


def _open(socket: zmq.asyncio.Socket, endpoint: str, *, connect: bool = False) -> str:
    """Bind or connect; the endpoint with the port that was taken."""
    try:
        if connect:
            socket.connect(endpoint)
            return endpoint
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise OSError(f"cannot publish KV events on {endpoint}: {error.strerror or error}") from error
    return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))
