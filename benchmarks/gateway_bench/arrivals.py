"""Requests that arrive at random with a mean rate, whatever became of the ones before."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

_END_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When requests arrive (Poisson), the same times for everybody who is measured.

    Attributes:
        rate: requests per second.
        warm_s: how long nothing counts.
        window_s: how long it counts afterwards.
    """

    rate: float
    warm_s: float
    window_s: float

    async def run(
        self, ask: Callable[[], Awaitable[float | None]], counts_from_now: Callable[[], None] = lambda: None
    ) -> list[float]:
        """Ask when it is time.

        Args:
            ask: returns how long it waited, None when it got nothing.
            counts_from_now: called when `warm_s` are over.

        Returns:
            What `ask` returned, in order of size.

        Raises:
            TimeoutError: some are still waiting 20 s after the last arrived.
        """
        dice = random.Random(0)
        waits: list[float] = []

        async def note() -> None:
            if (wait := await ask()) is not None:
                waits.append(wait)

        due = began = time.perf_counter()
        asking: set[asyncio.Task[None]] = set()
        warm = True
        while due < began + self.warm_s + self.window_s:
            due += dice.expovariate(self.rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if warm and due >= began + self.warm_s:
                warm = False
                waits.clear()
                counts_from_now()
            task = asyncio.create_task(note())
            asking.add(task)
            task.add_done_callback(asking.discard)
        await asyncio.wait_for(asyncio.gather(*asking), _END_LIMIT_S)
        return sorted(waits)


def percentile(ordered: list[float], percent: int) -> float:
    """What so many of a hundred are below."""
    return ordered[len(ordered) * percent // 100]
