"""Open requests, and the only two ways in which one ends."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import grpc

from rhizome_engine.core.backlog import Backlog
from rhizome_engine.core.constraints import Constraints
from rhizome_engine.core.events import FailedEvent, FinishedEvent
from rhizome_engine.scheduler.load import LoadMeter, Outcome
from rhizome_engine.scheduler.request import FinishReason, Request
from rhizome_engine.scheduler.scheduler import Scheduler
from rhizome_transport.errors import EngineError


class OpenRequests:
    """Requests by peer and id, from `add` until `finish` or `fail`, which take back all that they hold.

    Args:
        scheduler: holds their pages and places.
        constraints: holds their grammars.
        backlog: holds those back that came together.
        meter: counts them.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        constraints: Constraints,
        backlog: Backlog,
        meter: LoadMeter,
        clock: Callable[[], float],
    ) -> None:
        self._scheduler = scheduler
        self._constraints = constraints
        self._backlog = backlog
        self._meter = meter
        self._clock = clock
        self._requests: dict[tuple[Hashable, str], Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, key: object) -> bool:
        return key in self._requests

    def add(self, request: Request) -> None:
        """Note a request that was accepted."""
        self._requests[request.key] = request
        self._meter.received(request.num_prompt)

    def get(self, peer: Hashable, request_id: str) -> Request | None:
        """An open request, None where there is none of that name."""
        return self._requests.get((peer, request_id))

    def of_peer(self, peer: Hashable) -> list[Request]:
        """All open requests of a peer."""
        return [request for request in self._requests.values() if request.peer == peer]

    def has_half(self, peer: Hashable) -> bool:
        """Whether a peer has at least half of all open requests; needs a walk over them."""
        own = sum(request.peer == peer for request in self._requests.values())
        return 2 * own >= len(self._requests)

    def finish(
        self,
        request: Request,
        reason: FinishReason,
        stop_token_id: int | None = None,
        outcome: Outcome = "completed",
    ) -> FinishedEvent:
        """End a request that got what it asked for, or was cancelled."""
        self._close(request, keep=True)
        timings = request.timings(self._clock())
        self._meter.ended(outcome, timings)
        return FinishedEvent(request, reason, stop_token_id, request.usage(), timings)

    def fail(
        self,
        request: Request,
        code: grpc.StatusCode,
        message: str,
        param: str = "",
        *,
        reason: str = "",
        retry_after_s: float | None = None,
        outcome: Outcome = "failed",
        keep: bool = False,
    ) -> FailedEvent:
        """End a request with an error.

        Args:
            request: an open one.
            code: the error's status.
            message: what was wrong, and what to do.
            param: which field was wrong.
            reason: refines the status.
            retry_after_s: when to try again, where waiting helps.
            outcome: how it is counted.
            keep: what it computed can be trusted and stays in the cache.
        """
        self._close(request, keep=keep)
        timings = request.timings(self._clock())
        self._meter.ended(outcome, timings)
        error = EngineError(code, message, reason=reason, param=param, retry_after_s=retry_after_s)
        return FailedEvent(request, error, request.usage(), timings)

    def _close(self, request: Request, *, keep: bool) -> None:
        self._constraints.forget(request)
        self._backlog.forget(request)
        self._scheduler.finish(request, keep=keep)
        del self._requests[request.key]
