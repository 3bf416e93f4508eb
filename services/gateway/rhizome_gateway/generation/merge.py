"""All choices of one chat completion as one stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress

from rhizome_gateway.generation.choice import ChoiceEvent


@asynccontextmanager
async def merged(
    choices: Sequence[AsyncGenerator[ChoiceEvent, None]],
) -> AsyncIterator[AsyncIterator[ChoiceEvent]]:
    """Interleave the events of several choices as they come; leaving the block closes them all.

    The first error of any choice is raised to the reader; one that reads slowly slows all choices down.
    """
    if len(choices) == 1:
        async with aclosing(choices[0]) as events:
            yield events
        return
    queue: asyncio.Queue[ChoiceEvent | Exception | None] = asyncio.Queue(maxsize=len(choices))

    async def pump(choice: AsyncGenerator[ChoiceEvent, None]) -> None:
        last: Exception | None = None
        try:
            async with aclosing(choice) as events:
                async for event in events:
                    await queue.put(event)
        except Exception as error:
            last = error
        await queue.put(last)

    async def read() -> AsyncIterator[ChoiceEvent]:
        open_choices = len(choices)
        while open_choices:
            event = await queue.get()
            if event is None:
                open_choices -= 1
            elif isinstance(event, Exception):
                raise event
            else:
                yield event

    pumps = [asyncio.create_task(pump(choice)) for choice in choices]
    try:
        yield read()
    finally:
        for task in pumps:
            task.cancel()
        for task in pumps:
            with suppress(asyncio.CancelledError):
                await task
