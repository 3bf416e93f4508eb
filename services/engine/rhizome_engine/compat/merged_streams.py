"""Several streams as one, in the order in which their items come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")


async def merged(streams: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[Item, None]:
    """Yield what the streams yield, until all are over; all are closed at the end.

    A stream is read only as fast as the items are taken.

    Raises:
        Exception: what the first failing stream raised.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for one in only:
                yield one
        return
    queue: asyncio.Queue[Item | asyncio.Task[None]] = asyncio.Queue(1)

    async def pump(stream: AsyncGenerator[Item, None]) -> None:
        async with aclosing(stream):
            async for item in stream:
                await queue.put(item)

    async def announce(pumping: asyncio.Task[None]) -> None:
        await asyncio.wait((pumping,))
        await queue.put(pumping)

    pumps = [asyncio.create_task(pump(stream)) for stream in streams]
    announcing = [asyncio.create_task(announce(one)) for one in pumps]
    try:
        open_streams = len(streams)
        while open_streams:
            item = await queue.get()
            if isinstance(item, asyncio.Task):
                item.result()
                open_streams -= 1
            else:
                yield item
    finally:
        for task in (*pumps, *announcing):
            task.cancel()
        await asyncio.gather(*pumps, *announcing, return_exceptions=True)
