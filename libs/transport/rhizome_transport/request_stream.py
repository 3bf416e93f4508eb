"""One open request, seen from whoever asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from rhizome.engine.v1.generate_pb2 import GenerateResponse
from rhizome_transport.errors import EngineError
from rhizome_transport.inbox import Arrived, RequestInbox, as_response


class RequestStream:
    """The events of one request; its reader is called when there is something to take.

    A task switch for each token would cost more than all that a gateway does with it. So nothing is awaited
    here: `on_arrival` runs while the engine's frame is read, takes what there is and writes it out.

    Args:
        inbox: takes the request's events.
        request_id: names it.
        too_late: fails the request by itself at this time of the loop's clock; `None` is never.
    """

    __slots__ = ("_expired", "_inbox", "_request_id", "_timer")

    def __init__(
        self,
        inbox: RequestInbox,
        request_id: str,
        too_late: tuple[float, EngineError] | None = None,
    ) -> None:
        self._request_id = request_id
        self._inbox = inbox
        self._expired: EngineError | None = None
        self._timer: asyncio.TimerHandle | None = None
        if too_late is not None:
            self._timer = asyncio.get_running_loop().call_at(too_late[0], self._expire, too_late[1])

    @property
    def ended(self) -> bool:
        """Whether nothing more will arrive; something may still be there to take."""
        return self._inbox.ended or self._expired is not None

    def take(self) -> Arrived | None:
        """The next event; `None` when there is none yet, or none any more. Token ids alone come as a list.

        Raises:
            EngineError: how the request ended, where it did not end well.
        """
        if self._expired is not None:
            raise self._expired
        return self._inbox.take()

    def cancel(self, *, satisfied: bool = False) -> None:
        """End the request but go on reading: `finished` follows; see `client.EngineClient.cancel`."""
        if not self._inbox.ended:
            self._inbox.cancel(self._request_id, satisfied=satisfied)

    def close(self) -> None:
        """Stop reading; what still runs is cancelled in the engine. May be called twice."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._inbox.ended:
            self._inbox.cancel(self._request_id)
        self._inbox.abandon()

    def _expire(self, error: EngineError) -> None:
        if not self._inbox.ended:
            self._expired = error
            self._inbox.tell()


async def each_event(
    begin: Callable[[Callable[[], None]], Awaitable[RequestStream]],
) -> AsyncGenerator[GenerateResponse, None]:
    """The events of one request for a reader that waits; closing the generator closes the stream.

    Args:
        begin: starts the request, given what to call when there is something to take.
    """
    news = asyncio.Event()
    stream = await begin(news.set)
    try:
        while True:
            news.clear()
            while (arrived := stream.take()) is not None:
                yield as_response(arrived)
            if stream.ended:
                return
            await news.wait()
    finally:
        stream.close()
