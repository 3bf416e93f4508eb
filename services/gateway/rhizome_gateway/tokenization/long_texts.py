"""Work on texts in threads, on very long ones one after another.

While the tokenizers package works, a character may cost 160 bytes: 4 MB of text that is no language take
0.65 GB and three seconds. As many at a time as there are threads would be several gigabytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

VERY_LONG: Final = 1 << 18
"""Characters; below it a text takes 50 MB at most, and waits for nobody."""

Result = TypeVar("Result")


class LongTexts:
    """The turns of very long texts."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def work(self, chars: int, task: Callable[[], Result]) -> Result:
        """Run `task`, on a text of so many characters, in a thread.

        A thread cannot be stopped: where whoever waits gives up, the turn ends with the thread all the same.
        """
        if chars < VERY_LONG:
            return await asyncio.to_thread(task)
        await self._turn.acquire()
        working = asyncio.create_task(asyncio.to_thread(task))
        working.add_done_callback(self._next)
        return await asyncio.shield(working)

    def _next(self, working: asyncio.Task[Result]) -> None:
        self._turn.release()
        if not working.cancelled():
            working.exception()  # seen, though nobody may wait for it any more
