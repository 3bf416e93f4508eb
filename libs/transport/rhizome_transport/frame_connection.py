"""A connection that is used once: it carries payloads until it breaks, and says so.

What arrives is handed on from the event loop's own callback where somebody asked for that (`carry`): a future
and a task switch for each wake-up cost as much as reading what came.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

from rhizome_transport.errors import EngineError


class FrameConnection(ABC):
    """Carries payloads to and from an engine until it breaks.

    Must be made inside the running loop. One task receives; one sends, or many post.

    Attributes:
        broken: nothing can be sent any more; what arrived before can still be received.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[bytes] = deque()
        self._posted: deque[bytes] = deque()
        self._posting = False
        self._take: Callable[[Sequence[bytes]], None] | None = None
        self._failure: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._closed = False
        self.broken = False

    @property
    def waiting_bytes(self) -> int:
        """Bytes that arrived and were not received yet."""
        return sum(map(len, self._arrived))

    @abstractmethod
    def send_now(self, payload: bytes) -> bool:
        """Send one message if there is room for it; whether it was sent."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the connection; never raises and may be called twice."""

    async def send(self, payload: bytes) -> None:
        """Send one message.

        Raises:
            EngineError: the connection broke.
        """
        while not self.broken:
            if self.send_now(payload):
                return
            writable = self._writer = self._loop.create_future()
            self._before_waiting()
            await writable
        raise self._lost()

    def post(self, payload: bytes) -> None:
        """Send one message after those posted before, at once if there is nothing to wait for.

        A task switch for each message would cost more than ZeroMQ's part of sending it. Once the connection
        is broken, which a reader learns, messages are dropped.
        """
        if not self.broken and (self._posted or not self.send_now(payload)):
            self._posted.append(payload)
            self._before_waiting()

    async def receive(self) -> bytes:
        """Receive one message; cancelling loses none.

        Raises:
            EngineError: the connection broke, and everything that came before was received.
        """
        while not self._arrived:
            if self.broken:
                raise self._lost()
            self._reader = self._loop.create_future()
            await self._reader
        return self._arrived.popleft()

    async def carry(self, take: Callable[[Sequence[bytes]], None]) -> NoReturn:
        """Hand over all messages as they arrive, from the event loop's own callback.

        Raises:
            EngineError: the connection broke, and everything that came before was handed over.
            Exception: what `take` raised.
        """
        self._take, self._failure = take, None
        try:
            self._hand_over()
            while self._failure is None and not self.broken:
                self._reader = self._loop.create_future()
                await self._reader
            self._hand_over()
            raise self._failure or self._lost()
        finally:
            self._take = None

    def _before_waiting(self) -> None:  # noqa: B027 - most have nothing to do
        """Called while somebody begins to wait until something can be sent."""

    def _deliver(self) -> None:
        """Something may have arrived."""
        if self._take is not None:
            self._hand_over()
        elif self._arrived:
            self._wake(self._reader)

    def _hand_over(self) -> None:
        if self._take is None or self._failure is not None or not self._arrived:
            return
        messages = list(self._arrived)
        self._arrived.clear()
        try:
            self._take(messages)
        except Exception as error:  # for whoever waits in `carry`
            self._failure = error
            self._wake(self._reader)

    @property
    def _has_to_write(self) -> bool:
        """Whether `_wake_writer` would be heard."""
        return self._writer is not None or bool(self._posted)

    def _wake_writer(self) -> None:
        """There may be room again."""
        if self._posting:
            return
        self._posting = True
        try:
            while self._posted and self.send_now(self._posted[0]):
                self._posted.popleft()
        finally:
            self._posting = False
        if self._posted:
            self._loop.call_soon(self._before_waiting)
        else:
            self._wake(self._writer)
            self._writer = None

    def _break(self) -> None:
        self.broken = True
        self._posted.clear()
        self._wake(self._reader)
        self._wake(self._writer)

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    @abstractmethod
    def _lost(self) -> EngineError:
        """Why it broke."""


OpenConnection = Callable[[], Awaitable[FrameConnection]]
"""Makes a new connection, or raises EngineError."""
