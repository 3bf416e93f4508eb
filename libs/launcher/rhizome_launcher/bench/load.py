"""Sends requests: so many at a time (closed loop), a wave at once, or when they arrive (open loop)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rhizome_launcher.bench.client import OpenAIClient
from rhizome_launcher.bench.records import RequestRecord


@dataclass(slots=True)
class Load:
    """What was sent and what came back; stays valid when the sending is cancelled.

    Attributes:
        client: who sends.
        on_record: called with each record.
        sent: requests begun.
        waves: records by wave; one wave for the other kinds of load.
        together: whether the requests of each wave started together.
    """

    client: OpenAIClient
    on_record: Callable[[RequestRecord], None] = lambda record: None
    sent: int = 0
    waves: list[list[RequestRecord]] = field(default_factory=list)
    together: bool = False

    @property
    def records(self) -> list[RequestRecord]:
        """All records, in the order in which the requests ended."""
        return [record for wave in self.waves for record in wave]

    @property
    def unfinished(self) -> int:
        """Requests that were begun and have no record."""
        return self.sent - sum(map(len, self.waves))

    async def closed_loop(self, bodies: Sequence[bytes], concurrency: int) -> None:
        """Keep `concurrency` requests open until all were sent; each stream sends its next at once."""
        self.together = len(bodies) <= concurrency
        self.waves.append([])
        queue = iter(bodies)
        await _all_of(self._stream(queue) for _ in range(min(concurrency, len(bodies))))

    async def in_waves(self, bodies: Sequence[bytes], concurrency: int) -> None:
        """Send `concurrency` requests at once, the next ones when all of them have ended."""
        self.together = True
        for start in range(0, len(bodies), concurrency):
            self.waves.append([])
            await _all_of(self._send(body) for body in bodies[start : start + concurrency])

    async def open_loop(self, bodies: Sequence[bytes], arrivals: Iterable[float]) -> None:
        """Send each request when it is due, in seconds from now, whatever became of those before."""
        self.waves.append([])
        start = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for body, arrival in zip(bodies, arrivals, strict=False):
                due = start + arrival
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                tasks.create_task(self._send(body, due))

    async def _stream(self, queue: Iterator[bytes]) -> None:
        for body in queue:
            await self._send(body)

    async def _send(self, body: bytes, due_s: float | None = None) -> None:
        wave = self.waves[-1]
        self.sent += 1
        record = await self.client.send(body, due_s)
        wave.append(record)
        self.on_record(record)


async def _all_of(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as tasks:
        for coroutine in coroutines:
            tasks.create_task(coroutine)
