"""A connection to an engine core that is used once: it carries payloads until it breaks, and says so.

What arrives is handed on from the event loop's own callback where somebody asked for that (`carry`): a future
and a task switch for each wake-up cost as much as reading what came.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import NoReturn

import grpc

from rhizome_transport.errors import EngineError


class CoreConnection(ABC):
    """Carries payloads to and from a `frame_server.FrameServer` until it breaks.

    Must be made inside the running loop. One task receives and one sends.

    Args:
        endpoint: of the core.

    Attributes:
        broken: nothing can be sent any more; what arrived before can still be received.
    """

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[bytes] = deque()
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
            EngineError: UNAVAILABLE, the connection broke.
        """
        while not self.broken:
            if self.send_now(payload):
                return
            writable = self._writer = self._loop.create_future()
            self._before_waiting()
            await writable
        raise self._lost()

    async def receive(self) -> bytes:
        """Receive one message; cancelling loses none.

        Raises:
            EngineError: UNAVAILABLE, the connection broke and everything that came before was received.
        """
        await self._wait_for_some()
        return self._arrived.popleft()

    async def receive_all(self) -> list[bytes]:
        """Receive all messages that have arrived, at least one; raises as `receive` does."""
        await self._wait_for_some()
        messages = list(self._arrived)
        self._arrived.clear()
        return messages

    async def carry(self, take: Callable[[Sequence[bytes]], None]) -> NoReturn:
        """Hand over all messages as they arrive, from the event loop's own callback.

        Raises:
            EngineError: UNAVAILABLE, the connection broke and everything that came before was handed over.
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

    async def _wait_for_some(self) -> None:
        while not self._arrived:
            if self.broken:
                raise self._lost()
            self._reader = self._loop.create_future()
            await self._reader

    def _wake_writer(self) -> None:
        self._wake(self._writer)
        self._writer = None

    def _break(self) -> None:
        self.broken = True
        self._wake(self._reader)
        self._wake(self._writer)

    @staticmethod
    def _wake(waiter: asyncio.Future[None] | None) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _lost(self) -> EngineError:
        return EngineError(
            grpc.StatusCode.UNAVAILABLE, f"the engine core at {self._endpoint} is gone or not started"
        )


def too_many_open(endpoint: str, error: Exception) -> EngineError:
    """There are too many sockets or open files already."""
    return EngineError(
        grpc.StatusCode.UNAVAILABLE, f"no further connection to {endpoint} can be opened: {error}"
    )
