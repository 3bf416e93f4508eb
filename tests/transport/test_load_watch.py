"""When a watched load is told again."""

from __future__ import annotations

from contextlib import aclosing

import grpc
import pytest

from rhizome.engine.v1.engine_service_pb2 import WatchLoadRequest
from rhizome.engine.v1.load_pb2 import Load
from rhizome_transport.errors import EngineError
from rhizome_transport.load_watch import watch_load


class Engine:
    """Reports what it is told to, with the next sequence number; breaks at the end."""

    def __init__(self, running: list[int]) -> None:
        self._running = iter(running)
        self._sequence = 0

    async def load(self) -> Load:
        self._sequence += 1
        running = next(self._running, None)
        if running is None:
            raise EngineError(grpc.StatusCode.UNAVAILABLE, "gone")
        return Load(sequence=self._sequence, running_requests=running)


async def test_tells_the_first_load_and_then_only_news():
    told = []
    with pytest.raises(EngineError, match="gone"):
        async with aclosing(
            watch_load(Engine([1, 1, 2, 2, 2, 1]).load, WatchLoadRequest(min_interval_ms=0))
        ) as loads:
            async for response in loads:
                told += [(response.load.running_requests, response.load.sequence)]
    assert told == [(1, 1), (2, 3), (1, 6)]
