"""One connection to an engine that carries frames; gRPC and ZeroMQ have one each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn, Protocol


class FrameLink(Protocol):
    """Carries frames both ways until it breaks; a broken one is never repaired but replaced."""

    async def send(self, frame: bytes) -> None:
        """Write one serialised ClientFrame. Only one task writes at a time.

        Raises:
            EngineError: the link broke.
        """
        ...

    def send_now(self, frame: bytes) -> bool:
        """Write one serialised ClientFrame if that takes no waiting; whether it was written.

        No `send` may be under way.
        """
        ...

    async def carry(self, take: Callable[[Sequence[bytes]], None]) -> NoReturn:
        """Hand over all serialised EngineFrames that arrive, as `receive` gives them, until the link breaks.

        Raises:
            EngineError: the link broke.
            Exception: what `take` raised, which ends it, too.
        """
        ...

    async def receive(self) -> Sequence[bytes]:
        """Read the serialised EngineFrames that have arrived, at least one. Only one task reads.

        Raises:
            EngineError: the link broke, after everything that arrived before was read.
        """
        ...

    async def close(self) -> None:
        """Let go of the connection; never raises."""
        ...


OpenLink = Callable[[], Awaitable[FrameLink]]
