"""Following vLLM's KV events over ZeroMQ: PUB with numbered batches, ROUTER to have old ones sent again.

The view is exact only if no batch is missing, from the first one of the instance on. Where a gap is larger
than what vLLM can send again, or it has no replay socket, blocks whose parents are unknown cannot be named:
the view stays a guess from what was sent there, which the events still improve, until the cache is cleared or
vLLM started anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Final

import zmq
import zmq.asyncio

from rhizome_routing.prefix.index import PrefixIndex
from rhizome_routing.prefix.vllm_blocks import VllmBlocks

_REPLAY_TIMEOUT_S: Final = 2.0
_QUEUED_BATCHES: Final = 100_000
_log = logging.getLogger(__name__)


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
    # Number `following` comes next. From `joined` on they come, or have come, on the PUB socket: a smaller
    # one is a new instance's. The view is `whole` where no batch is missing.
    following, joined, whole = 0, 0, True
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
