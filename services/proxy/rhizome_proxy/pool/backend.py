"""One engine as the proxy sees it."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable
from dataclasses import dataclass

from rhizome.engine.v1.load_pb2 import Load
from rhizome.proxy.v1 import proxy_service_pb2 as proxy_pb2
from rhizome_proxy.kinds.base import Engine

LOAD_MAX_AGE_S = 2.0
"""A load report older than this says nothing about now."""


class State(enum.Enum):
    """Whether a backend gets requests."""

    UNKNOWN = proxy_pb2.BACKEND_STATE_UNKNOWN
    READY = proxy_pb2.BACKEND_STATE_READY
    DOWN = proxy_pb2.BACKEND_STATE_DOWN
    DRAINING = proxy_pb2.BACKEND_STATE_DRAINING


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What an engine said about itself, and what this proxy had open there at that moment.

    Attributes:
        load: the report.
        own: requests of this proxy that the report may contain.
        at: when it arrived, in seconds of the monotonic clock.
    """

    load: Load
    own: int
    at: float


class Lease:
    """One request's place in a backend's in-flight count, given back exactly once."""

    __slots__ = ("_backend", "_open")

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._open = True

    def release(self, *, failed: bool = False) -> None:
        """Give the place back; `failed` means before the first event. Further calls do nothing."""
        if self._open:
            self._open = False
            self._backend._released(failed=failed)


class Backend:
    """An engine in the pool: its state, this proxy's own count of open requests, its last load report.

    Attributes:
        name: unique in the pool.
        address: host:port.
        engine: how to talk to it.
        reason: why it is not ready, for people; empty when it is.
        models: what it serves; empty while unknown.
        report: its last load report; `None` when there was none.
        last_seen: when it last answered a check, in seconds since the epoch; `None` when it never did.
        in_flight: requests that this proxy has open there.
        total: requests that this proxy has sent there.
        failed: requests that failed there before their first event.
    """

    def __init__(self, name: str, address: str, engine: Engine) -> None:
        self.name = name
        self.address = address
        self.engine = engine
        self.reason = "not checked yet"
        self.models: tuple[str, ...] = ()
        self.report: LoadReport | None = None
        self.last_seen: float | None = None
        self.in_flight = 0
        self.total = 0
        self.failed = 0
        self.on_change: Callable[[], None] = lambda: None
        self.on_suspect: Callable[[], None] = lambda: None
        self._health = State.UNKNOWN
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def state(self) -> State:
        """Whether it gets requests; draining wins over what the health checks say."""
        return State.DRAINING if self._draining else self._health

    @property
    def checked(self) -> bool:
        """Whether a check ended, well or not."""
        return self._health is not State.UNKNOWN

    @property
    def ready(self) -> bool:
        """Whether it gets requests."""
        return self._health is State.READY and not self._draining

    def mark_ready(self, models: tuple[str, ...] = ()) -> None:
        """It answered a check and serves."""
        self.models = models or self.models
        self._set_health(State.READY, "")

    def mark_down(self, reason: str) -> None:
        """It does not answer, or says that it does not serve; its last load report is void."""
        self.report = None
        self._set_health(State.DOWN, reason)

    def suspect(self, reason: str) -> None:
        """A request found it broken: nothing new goes there until a check, made at once, says otherwise."""
        self.mark_down(reason)
        self.on_suspect()

    def drain(self, draining: bool = True) -> None:
        """Send it nothing new, or let it get requests again."""
        self._draining = draining
        self.on_change()

    async def wait_idle(self) -> None:
        """Return once this proxy has no open request there."""
        await self._idle.wait()

    def lease(self) -> Lease:
        """Count one more open request there until the lease is released."""
        self.in_flight += 1
        self.total += 1
        self._idle.clear()
        return Lease(self)

    def observe_load(self, load: Load | None, own: int | None = None) -> None:
        """Keep a load report; `None` voids the last one.

        Args:
            load: the report.
            own: requests of this proxy that it may contain; those open now when absent.
        """
        if load is None:
            self.report = None
            return
        self.report = LoadReport(load, self.in_flight if own is None else own, time.monotonic())

    def foreign_requests(self) -> int | None:
        """Requests there that are not this proxy's, by the last report; `None` means unknown, never idle.

        The report counts everybody's requests, so what this proxy had open at that moment is taken off; what
        it opened since is in `in_flight`.
        """
        report = self.report
        if report is None or time.monotonic() - report.at > LOAD_MAX_AGE_S:
            return None
        if not report.load.HasField("running_requests") or not report.load.HasField("waiting_requests"):
            return None
        return max(0, report.load.running_requests + report.load.waiting_requests - report.own)

    def _released(self, *, failed: bool) -> None:
        self.in_flight -= 1
        self.failed += failed
        if not self.in_flight:
            self._idle.set()

    def _set_health(self, health: State, reason: str) -> None:
        self.reason = reason
        if health is not self._health:
            self._health = health
            self.on_change()
