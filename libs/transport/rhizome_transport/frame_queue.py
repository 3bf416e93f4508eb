"""What waits to be written to a peer, in order and within its credit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class FrameQueue:
    """Two queues of serialised frames: those with events need credit, one each; others go first, without.

    Nothing merges here. A frame's `written` callback is how its engine learns that it may send another, so a
    reader that stops holds up at most one window of frames per engine; beyond that the engine merges.
    """

    def __init__(self, credit: int) -> None:
        self._credit = credit
        self._control: deque[bytes] = deque()
        self._events: deque[tuple[bytes, Callable[[], None] | None]] = deque()
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()
        self._closed = False

    def put_control(self, frame: bytes) -> None:
        """Add a frame without events."""
        self._control.append(frame)
        self._changed()

    def put_events(self, frame: bytes, written: Callable[[], None] | None = None) -> None:
        """Add a frame with events; `written` is called once it was handed to the transport."""
        self._events.append((frame, written))
        self._changed()

    def add_credit(self, frames: int) -> None:
        """The peer allows that many more frames with events."""
        self._credit += frames
        self._wake.set()

    def close(self) -> None:
        """Write nothing more; what waits is dropped."""
        self._closed = True
        self._wake.set()

    async def next(self) -> tuple[bytes, Callable[[], None] | None] | None:
        """Wait for the next frame that may be written; `None` at the end. The one before is written then."""
        while not self._closed:
            if self._control:
                return self._control.popleft(), None
            if self._events and self._credit > 0:
                self._credit -= 1
                return self._events.popleft()
            if not self._events:
                self._written.set()
            self._wake.clear()
            await self._wake.wait()
        return None

    async def flushed(self) -> None:
        """Wait until everything was written."""
        await self._written.wait()

    def _changed(self) -> None:
        self._written.clear()
        self._wake.set()
