"""`WatchLoad` for whoever can answer `GetLoad`: engines and proxies alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from rhizome.engine.v1.engine_service_pb2 import WatchLoadRequest, WatchLoadResponse
from rhizome.engine.v1.load_pb2 import Load

_DEFAULT_INTERVAL_MS = 250
_LEAST_INTERVAL_MS = 10
"""Each look takes some of the engine's time, which belongs to everybody."""


async def watch_load(
    load_now: Callable[[], Awaitable[Load]], request: WatchLoadRequest
) -> AsyncGenerator[WatchLoadResponse, None]:
    """The load now, and again whenever something beside its sequence number changed.

    Args:
        load_now: gives the load with the next sequence number; what it raises ends the watch.
        request: says how often.
    """
    interval_ms = _DEFAULT_INTERVAL_MS
    if request.HasField("min_interval_ms"):
        interval_ms = max(request.min_interval_ms, _LEAST_INTERVAL_MS)
    told: bytes | None = None
    while True:
        load = await load_now()
        news = _without_sequence(load)
        if news != told:
            told = news
            yield WatchLoadResponse(load=load)
        await asyncio.sleep(interval_ms / 1000)


def _without_sequence(load: Load) -> bytes:
    copy = Load()
    copy.CopyFrom(load)
    copy.ClearField("sequence")
    return copy.SerializeToString(deterministic=True)
