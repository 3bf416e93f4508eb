"""A value that is read in the background while somebody asks for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")


class Refreshed(Generic[T]):
    """Answers at once, or nearly: with what was read a moment ago, or with nothing.

    One read runs at a time, however many ask.

    Args:
        read: gives the value, or None where there is none now; what it raises reaches those who ask.
        fresh_s: age up to which a value is not read again.
        wait_s: how long those who ask wait for a read; after that they get what was read before.
        stale_s: age from which a value is no longer given.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[T | None]],
        *,
        fresh_s: float = 0.5,
        wait_s: float = 0.015,
        stale_s: float = 3.0,
    ) -> None:
        self._read = read
        self._fresh_s = fresh_s
        self._wait_s = wait_s
        self._stale_s = stale_s
        self._value: T | None = None
        self._value_at = self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def latest(self) -> T | None:
        """The value; None while there is none, or none that is recent."""
        if self._reading is None and time.monotonic() - self._read_at > self._fresh_s:
            self._reading = asyncio.create_task(self._refresh())
        reading = self._reading
        if reading is not None:
            await asyncio.wait({reading}, timeout=self._wait_s)
            if reading.done():
                reading.result()
        return self._value if time.monotonic() - self._value_at <= self._stale_s else None

    async def close(self) -> None:
        """Give up a read that runs."""
        if self._reading is not None:
            self._reading.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._reading

    async def _refresh(self) -> None:
        try:
            self._value = await self._read()
            self._value_at = time.monotonic()
        finally:
            self._read_at = time.monotonic()
            self._reading = None
