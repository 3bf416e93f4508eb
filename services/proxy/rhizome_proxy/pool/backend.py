"""One engine as the proxy sees it."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from rhizome.engine.v1.load_pb2 import Load
from rhizome.proxy.v1 import proxy_service_pb2 as proxy_pb2
from rhizome_backends.base import Engine, Server
from rhizome_backends.spec import BackendSpec
from rhizome_routing.admission import Fleet, RoomRules, Sent
from rhizome_routing.candidate import LoadReport
from rhizome_routing.outlier import Outlier, OutlierRules

LOAD_MAX_AGE_S = 2.0
"""A load report older than this says nothing about now."""

_BRIEF_S = 1.0
"""A backend that was away for less comes back with its caches warm; a full one may have room again."""


class State(enum.Enum):
    """Whether a backend gets requests."""

    UNKNOWN = proxy_pb2.BACKEND_STATE_UNKNOWN
    READY = proxy_pb2.BACKEND_STATE_READY
    DOWN = proxy_pb2.BACKEND_STATE_DOWN
    EJECTED = proxy_pb2.BACKEND_STATE_EJECTED
    DRAINING = proxy_pb2.BACKEND_STATE_DRAINING


@dataclass(frozen=True, slots=True)
class BackendRules:
    """What the settings say about every backend.

    Attributes:
        outlier: when it is ejected.
        max_running: with more requests running than this it is busy; `None` for no limit.
        max_waiting: the same for requests that wait in its queue.
        load_max_age_s: a load report older than this says nothing about now.
        room: how many requests it gets at a time.
    """

    outlier: OutlierRules = field(default_factory=OutlierRules)
    room: RoomRules = field(default_factory=RoomRules)
    max_running: int | None = None
    max_waiting: int | None = None
    load_max_age_s: float = LOAD_MAX_AGE_S


class Lease:
    """One request's place in a backend's in-flight count, given back exactly once."""

    __slots__ = ("_backend", "_open", "_sent", "_trial")

    def __init__(self, backend: Backend, sent: Sent, *, trial: bool) -> None:
        self._backend = backend
        self._sent = sent
        self._open = True
        self._trial = trial

    def answered(self) -> None:
        """Its first event came."""
        self._sent.answered()
        self._backend.outlier.succeeded()

    def release(self, *, failed: bool = False) -> None:
        """Give the place back; `failed` means before the first event. Further calls do nothing."""
        if self._open:
            self._open = False
            if self._trial:
                self._backend.outlier.trial = False
            self._backend._released(failed=failed)
            self._sent.left()


class Backend:
    """A server in the pool: its state, this proxy's own count of open requests, its last load report.

    Attributes:
        name: unique in the pool.
        load_max_age_s: a load report older than this says nothing about now.
        spec: what the settings say about it.
        http: whether it speaks HTTP rather than gRPC.
        server: how to talk to it.
        reason: why it is not ready, for people; empty when it is.
        models: what it serves; empty while unknown.
        report: its last load report; `None` when there was none.
        last_seen: when it last answered a check, in seconds since the epoch; `None` when it never did.
        in_flight: requests that this proxy has open there.
        total: requests that this proxy has sent there.
        failed: requests that failed there before their first event.
        resumed: answers that had begun there and went on at another backend.
        outlier: how its requests went.
        heard_at: when it last sent anything, in seconds of the monotonic clock; see `last_heard`.
        heard: each tells the same of one open HTTP stream.
        room: how many requests more it should get.
        cuts: each ends one open stream or call, whose requests then go elsewhere.
    """

    def __init__(
        self,
        spec: BackendSpec,
        server: Server,
        rules: BackendRules | None = None,
        may_eject: Callable[[], bool] = lambda: True,
        fleet: Fleet | None = None,
    ) -> None:
        self.rules = rules or BackendRules()
        self.load_max_age_s = self.rules.load_max_age_s
        self._fleet = fleet or Fleet(lambda group: ())
        self.room = self._fleet.new_room(self.rules.room)
        self.outlier = Outlier(self.rules.outlier, may_eject)
        self.heard_at = time.monotonic()
        self.cuts: set[Callable[[], object]] = set()
        self.heard: set[Callable[[], float]] = set()
        self.name = spec.name
        self.spec = spec
        self.http = spec.http
        self.server = server
        self.reason = "not checked yet"
        self.models: tuple[str, ...] = ()
        self.report: LoadReport | None = None
        self.last_seen: float | None = None
        self.in_flight = 0
        self.total = 0
        self.failed = 0
        self.resumed = 0
        self.on_change: Callable[[], None] = lambda: None
        self.on_suspect: Callable[[], None] = lambda: None
        self._health = State.UNKNOWN
        self._draining = False
        self._down_since: float | None = None
        self._full_until = 0.0
        self._idle: asyncio.Event | None = None  # where somebody waits for it

    @property
    def state(self) -> State:
        """Whether it gets requests; draining wins over what checks say, and checks over how requests went."""
        if self._draining:
            return State.DRAINING
        return State.EJECTED if self._health is State.READY and self.outlier.ejected else self._health

    @property
    def healthy(self) -> bool:
        """Whether it serves by its own words, however requests went there."""
        return self._health is State.READY and not self._draining

    @property
    def weight(self) -> float:
        """Its share of requests beside others; less than what is set for a while after it came back."""
        outlier = self.outlier
        return self.spec.weight if outlier.returned_at is None else self.spec.weight * outlier.weight

    @property
    def priority(self) -> int:
        """Its group; others of a lower number get requests first."""
        return self.spec.priority

    @property
    def engine(self) -> Engine:
        """How to talk to one of our engines; only for backends that speak gRPC."""
        assert not self.spec.http
        return cast("Engine", self.server)

    def knows(self, model: str) -> bool:
        """Whether it is known to serve a model by that name, `*` left aside."""
        own = self.spec.aliases.get(model)
        return (own or model) in self.models or (own is not None and not self.models)

    def own_name(self, model: str) -> str | None:
        """What a model is called there; `None` where it is known not to be served."""
        if model in self.models and not self.spec.aliases:
            return model
        own = self.spec.aliases.get(model)
        if own is None and model not in self.models:
            own = self.spec.aliases.get("*")
        own = own or model
        return own if not self.models or own in self.models else None

    @property
    def busy(self) -> bool:
        """Whether it is over a threshold, or just said that it is full: others come first."""
        if self._full_until and time.monotonic() < self._full_until:
            return True
        rules = self.rules
        if rules.max_running is None and rules.max_waiting is None:
            return False
        foreign = self.foreign_requests()
        waiting = self.report.load.waiting_requests if self.report is not None and foreign is not None else 0
        running = self.in_flight + (foreign or 0) - waiting
        return (rules.max_running is not None and running > rules.max_running) or (
            rules.max_waiting is not None and waiting > rules.max_waiting
        )

    @property
    def checked(self) -> bool:
        """Whether a check ended, well or not."""
        return self._health is not State.UNKNOWN

    @property
    def ready(self) -> bool:
        """Whether it gets requests."""
        return self.healthy and not self.outlier.ejected

    def mark_ready(self, models: tuple[str, ...] = ()) -> None:
        """It answered a check and serves."""
        known, self.models = self.models, models or self.models
        if self._down_since is not None and time.monotonic() - self._down_since > _BRIEF_S:
            self.outlier.returned()
        self._down_since = None
        self._set_health(State.READY, "")
        if self.models != known:
            self.on_change()

    def mark_down(self, reason: str) -> None:
        """It does not answer, or says that it does not serve; its last load report is void."""
        self.report = None
        if self._health is State.READY:
            self._down_since = time.monotonic()
        self._set_health(State.DOWN, reason)

    def suspect(self, reason: str) -> None:
        """A request found it broken: nothing new goes there until a check, made at once, says otherwise.

        All that fails before that check is one failure.
        """
        if self._health is State.READY:
            self.outlier.failed()
        self.mark_down(reason)
        self.on_suspect()

    def full(self, retry_after_s: float | None) -> None:
        """It refused a request because it has no room: others come first for a moment."""
        brief_s = min(_BRIEF_S, retry_after_s or _BRIEF_S)
        self._full_until = time.monotonic() + brief_s
        asyncio.get_running_loop().call_later(brief_s + 0.01, self._fleet.news)

    def last_heard(self) -> float:
        """When it last sent anything, on whichever stream, in seconds of the monotonic clock."""
        return max([self.heard_at, *(heard_at() for heard_at in self.heard)])

    def cut(self) -> None:
        """Break every stream and call that is open there; what can go on elsewhere does."""
        for end in list(self.cuts):
            end()

    def drain(self, draining: bool = True) -> None:
        """Send it nothing new, or let it get requests again."""
        self._draining = draining
        self.on_change()

    async def wait_idle(self) -> None:
        """Return once this proxy has no open request there."""
        while self.in_flight:
            if self._idle is None:
                self._idle = asyncio.Event()
            await self._idle.wait()

    def lease(self, tokens: int = 0, *, streamed: bool = True) -> Lease:
        """Count one more open request there until the lease is released.

        Args:
            tokens: of its prompt.
            streamed: whether its first event is its first token.
        """
        self.in_flight += 1
        self.total += 1
        sent = self.room.sent(tokens, streamed=streamed)
        outlier = self.outlier
        return Lease(self, sent, trial=outlier.until is not None and outlier.begin())

    def observe_load(self, load: Load | None, own: int | None = None) -> None:
        """Keep a load report; `None` voids the last one.

        Args:
            load: the report.
            own: requests of this proxy that it may contain; those open now when absent.
        """
        own = self.in_flight if own is None else own
        self.report = None if load is None else LoadReport(load, own, time.monotonic())
        self._fleet.news()

    def foreign_requests(self) -> int | None:
        """Requests there that are not this proxy's, by the last report; `None` means unknown, never idle.

        The report counts everybody's requests, so what this proxy had open at that moment is taken off; what
        it opened since is in `in_flight`.
        """
        report = self.report
        if report is None or time.monotonic() - report.at > self.rules.load_max_age_s:
            return None
        if not report.load.HasField("running_requests") or not report.load.HasField("waiting_requests"):
            return None
        return max(0, report.load.running_requests + report.load.waiting_requests - report.own)

    def _released(self, *, failed: bool) -> None:
        self.in_flight -= 1
        self.failed += failed
        if self._idle is not None and not self.in_flight:
            self._idle.set()
            self._idle = None

    def _set_health(self, health: State, reason: str) -> None:
        self.reason = reason
        if health is not self._health:
            self._health = health
            self.on_change()
