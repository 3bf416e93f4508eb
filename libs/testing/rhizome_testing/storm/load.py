"""Requests at a rate, whatever becomes of those before."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from rhizome_testing.storm.outcome import Ending, Outcome
from rhizome_testing.storm.question import Question

Ask = Callable[[Question, float], Awaitable[Outcome]]
_SLACK_S: Final = 5.0
"""Callers notice deadlines themselves; whoever is later than this has been forgotten."""


class Load:
    """An open loop: requests arrive by chance (Poisson) until it is stopped.

    Args:
        ask: sends a question and follows it.
        question: draws the next one.
        rate: requests per second.
        deadline_s: of each.
        seed: of the times.

    Attributes:
        outcomes: of requests that ended.
        most_open: so many were open at once.
    """

    def __init__(
        self, ask: Ask, question: Callable[[], Question], rate: float, deadline_s: float, seed: int = 0
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.most_open = 0
        self._ask = ask
        self._question = question
        self._rate = rate
        self._deadline_s = deadline_s
        self._dice = random.Random(seed)
        self._open: set[asyncio.Task[None]] = set()
        self._arriving = asyncio.create_task(self._arrive())

    @property
    def open(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    async def stop(self) -> list[Outcome]:
        """Send nothing more, and wait for what is open."""
        self._arriving.cancel()
        await asyncio.gather(self._arriving, return_exceptions=True)
        if self._open:
            await asyncio.wait(self._open)
        return self.outcomes

    def cancel(self) -> None:
        """Send nothing more and forget what is open."""
        self._arriving.cancel()
        for task in self._open:
            task.cancel()

    async def _arrive(self) -> None:
        due = time.monotonic()
        while True:
            due += self._dice.expovariate(self._rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(self._one(self._question()))
            self._open.add(task)
            self.most_open = max(self.most_open, len(self._open))
            task.add_done_callback(self._open.discard)

    async def _one(self, question: Question) -> None:
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(self._deadline_s + _SLACK_S):
                outcome = await self._ask(question, self._deadline_s)
        except TimeoutError:
            outcome = Outcome(Ending.HUNG, 0, began_s, 0.0, time.monotonic(), "no end at all")
        self.outcomes.append(outcome)
