"""One request's place, in the queue and then at the backends."""

from __future__ import annotations

import asyncio
import enum
from typing import Protocol

from rhizome_routing.admission.errors import QueueTimeout
from rhizome_routing.admission.fair_queue import Charge, Flow
from rhizome_routing.admission.settings import PriorityClass


class TicketState(enum.Enum):
    """Where a request is."""

    WAITING = enum.auto()
    ADMITTED = enum.auto()
    CLOSED = enum.auto()


class Desk(Protocol):
    """Who hands out tickets and takes them back."""

    def clock(self) -> float:
        """Seconds."""
        ...

    def expire(self, ticket: Ticket) -> None:
        """It waited as long as it may."""

    def close(self, ticket: Ticket, used_tokens: int) -> None:
        """It is given back, wherever it is."""


class Ticket:
    """One request.

    Attributes:
        tenant: whose request it is.
        priority: its class.
        tokens: what it is expected to cost.
        offered_at: seconds of the clock.
        expires_at: until when it may wait.
        waited_s: how long it waited; 0 until it is admitted.
        state: where it is.
        place: in the queue, while it waits.
        charge: what its tenant paid for it, where it waited.
        error: why it was not admitted.
    """

    __slots__ = (
        "_desk", "_future", "charge", "error", "expires_at", "offered_at", "place", "priority", "state",
        "tenant", "tokens", "waited_s",
    )  # fmt: skip

    def __init__(
        self, desk: Desk, tenant: str, priority: PriorityClass, tokens: int, now: float, wait_s: float
    ) -> None:
        self.tenant = tenant
        self.priority = priority
        self.tokens = tokens
        self.offered_at = now
        self.expires_at = now + wait_s
        self.waited_s = 0.0
        self.state = TicketState.WAITING
        self.place: tuple[Flow[Ticket], int] | None = None
        self.charge: Charge[Ticket] | None = None
        self.error: QueueTimeout | None = None
        self._desk = desk
        self._future: asyncio.Future[None] | None = None

    @property
    def admitted(self) -> bool:
        """Whether it may go to a backend, and has not been given back."""
        return self.state is TicketState.ADMITTED

    async def wait(self) -> None:
        """Return once it is admitted; who is cancelled meanwhile leaves no trace. For one task only.

        Raises:
            QueueTimeout: it waited as long as it may.
            asyncio.CancelledError: it was given back meanwhile or before.
        """
        if self.state is TicketState.WAITING:
            loop = asyncio.get_running_loop()
            self._future = loop.create_future()
            left_s = max(0.0, self.expires_at - self._desk.clock())
            timer = loop.call_later(left_s, self._desk.expire, self)
            try:
                await self._future
            except asyncio.CancelledError:
                self.cancel()
                raise
            finally:
                timer.cancel()
        if self.error is not None:
            raise self.error
        if self.state is TicketState.CLOSED:
            raise asyncio.CancelledError

    def cancel(self) -> None:
        """Give it up: it leaves the queue, or its place at the backends unused. Further calls do nothing."""
        self._desk.close(self, 0)

    def release(self, used_tokens: int | None = None) -> None:
        """Give its place back; further calls do nothing.

        Args:
            used_tokens: what it really cost; as much as expected when absent.
        """
        self._desk.close(self, self.tokens if used_tokens is None else used_tokens)

    def move(self, state: TicketState) -> None:
        """It left the queue; who waits for that goes on."""
        self.state = state
        self.place = None
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
