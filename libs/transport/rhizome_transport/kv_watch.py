"""`WatchKvEvents` as a stream, from calls that each end once they have told something."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

import numpy as np

from rhizome.engine.v1.engine_service_pb2 import KvStored, WatchKvEventsRequest, WatchKvEventsResponse


async def watch_kv_events(
    call: Callable[[bytes], Awaitable[list[bytes]]], request: bytes = b""
) -> AsyncGenerator[bytes, None]:
    """Every change of an engine's prefix cache, in order.

    The engine is asked for more only when everything that came was taken. A reader that falls too far behind
    finds a snapshot among the messages; nothing piles up anywhere meanwhile.

    Args:
        call: calls `WatchKvEvents` in a frame, without a time limit; what it raises ends the watch.
        request: a serialised WatchKvEventsRequest, which says where to start; by default with a snapshot.

    Yields:
        Serialised WatchKvEventsResponses.
    """
    while True:
        answers = await call(request)
        for answer in answers:
            yield answer
        newest = WatchKvEventsResponse.FromString(answers[-1]).sequence
        request = WatchKvEventsRequest(start_sequence=newest + 1).SerializeToString()


def stored_tokens(stored: KvStored) -> list[int]:
    """The tokens of all its blocks, where they were asked for."""
    tokens: list[int] = np.frombuffer(stored.token_ids, "<u4").tolist()
    return tokens
