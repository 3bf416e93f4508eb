"""What makes later steps faster is done while nobody waits, piece by piece, and never instead of work."""

from __future__ import annotations

import asyncio
import time

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.llm.engine_thread import EngineThread
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_testing.hash_core import HashCore, all_events, token_request
from rhizome_testing.hash_runner import HashRunner
from rhizome_transport.zmq_client import ZmqEngineClient


class Pieces:
    """Idle work of a runner: so many pieces of it; notes what the core was at when each was done."""

    def __init__(self, runner: HashRunner, count: int) -> None:
        self.left = count
        self.at: list[float] = []
        self.core: EngineCore | None = None
        runner.use_idle_time = self.use  # type: ignore[method-assign]

    def use(self) -> bool:
        assert self.core is None or not self.core.has_work
        if self.left:
            self.left -= 1
            self.at.append(time.monotonic())
        return self.left > 0

    async def all_done(self) -> None:
        deadline = time.monotonic() + 20
        while self.left:
            assert time.monotonic() < deadline, f"{self.left} pieces are left"
            await asyncio.sleep(0.01)


async def test_a_core_uses_the_time_in_which_it_has_no_work(
    hash_core: HashCore, client: ZmqEngineClient
) -> None:
    pieces = Pieces(hash_core.runner, 0)
    pieces.core = hash_core.core
    await all_events(client, token_request([1, 2, 3], 20))
    pieces.left = 12
    await pieces.all_done()
    assert len(pieces.at) == 12
    # One right after the other, though the loop sleeps for 200 ms where nothing is left.
    assert pieces.at[-1] - pieces.at[0] < 1.0


async def test_so_does_the_engine_thread() -> None:
    runner = HashRunner(64, 4)
    pieces = Pieces(runner, 12)
    pieces.core = EngineCore(runner, SchedulerConfig())
    thread = EngineThread(pieces.core)
    try:
        await pieces.all_done()
        assert pieces.at[-1] - pieces.at[0] < 1.0
    finally:
        thread.close()
