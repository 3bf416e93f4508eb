"""The engines as the gateway sees them, and what happened to them lately.

They are looked at every two seconds, whoever looks at the page, so that what happened while nobody did is
there to be seen. An event is the difference between two looks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from rhizome.engine.v1.load_pb2 import Load
from rhizome.proxy.v1.proxy_service_pb2 import Backend, BackendState
from rhizome_gateway.engine_session import EngineSession
from rhizome_gateway.metrics.engine_load import cache_section, engine_section, queue_section
from rhizome_gateway.metrics.live import LiveFigures
from rhizome_gateway.page.history import History
from rhizome_gateway.page.recent import RecentHits, hit_rate
from rhizome_gateway.page.stack_client import StackClient
from rhizome_transport.errors import EngineError

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 2.0
_MAX_EVENTS = 100
_MISSES = 2
"""A proxy that does not answer so often in a row is gone; once may be a busy machine."""
LONE_ENGINE = "engine"
"""What a single engine is called, which has no name of its own."""

_STATES = {
    BackendState.BACKEND_STATE_READY: "ready",
    BackendState.BACKEND_STATE_DOWN: "down",
    BackendState.BACKEND_STATE_EJECTED: "ejected",
    BackendState.BACKEND_STATE_DRAINING: "draining",
}


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an engine.

    Attributes:
        at: seconds since the epoch.
        kind: the state that it is in now; `added`, `removed`, `restarted`; `unreachable` when nobody can tell
            its state any more; `resumed` when answers that it had begun went on elsewhere.
        engine: its name.
        reason: why, for people.
        requests: how many answers went on elsewhere.
    """

    at: int
    kind: str
    engine: str
    reason: str = ""
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """One engine at one look; null in what is shown means that nobody knows."""

    name: str
    address: str
    kind: str
    state: str
    reason: str
    in_flight_requests: int | None
    total_requests: int | None
    failed_requests: int | None
    load: Load
    resumed_requests: int = 0

    def shown(self, recent: RecentHits | None) -> dict[str, Any]:
        """As JSON; `recent` is what its cache did of late."""
        engine, cache, queue = (
            engine_section(self.load),
            cache_section(self.load),
            queue_section(self.load),
        )
        pages, cached = cache["pages_total"], cache["pages_cached"]
        return {
            "name": self.name,
            "address": self.address,
            "kind": self.kind,
            "state": self.state,
            "reason": self.reason,
            "in_flight_requests": self.in_flight_requests,
            "total_requests": self.total_requests,
            "failed_requests": self.failed_requests,
            "served_requests": engine["completed_requests"],
            "running_requests": engine["running_requests"],
            "waiting_requests": queue["waiting_requests"],
            "tokens_per_second": engine["tokens_per_second"],
            "kv_utilization_percent": cache["kv_utilization_percent"],
            "cached_percent": round(100 * cached / pages, 2) if pages and cached is not None else None,
            "hit_rate": hit_rate([recent] if recent is not None else []),
        }


class Fleet:
    """Looks at the engines again and again.

    Args:
        stack: to ask.
        session: knows whether a lone engine answers; no proxy does.
        live: has its load.
    """

    def __init__(self, stack: StackClient, session: EngineSession, live: LiveFigures) -> None:
        self._stack = stack
        self._session = session
        self._live = live
        self._seen: Mapping[str, Seen] = {}
        self._hits: dict[str, RecentHits] = {}
        self._history = History()
        self._looked = False
        self._missed = 0
        self._events: deque[Event] = deque(maxlen=_MAX_EVENTS)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._keep_looking(), name="fleet")

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def engines(self) -> list[dict[str, Any]]:
        """The engines as they were at the last look; a lone one is asked for its load only now."""
        if LONE_ENGINE in self._seen:
            self._note([self._lone(await self._live.load())])
        return [seen.shown(self._hits.get(seen.name)) for seen in self._seen.values()]

    def events(self) -> list[dict[str, Any]]:
        """What happened, oldest first."""
        return [asdict(event) for event in self._events]

    def history(self, since: float) -> dict[str, list[float | None]]:
        """The figures after a time, as `History.since`."""
        return self._history.since(since)

    async def look(self) -> None:
        """Look once."""
        try:
            backends = await self._stack.backends()
        except EngineError as error:
            self._missed += 1
            alone = LONE_ENGINE in self._seen
            if self._missed < _MISSES and not alone:
                return
            seen: Sequence[Seen] = (
                [self._lone()] if alone else [_lost(engine, error) for engine in self._seen.values()]
            )
        else:
            self._missed = 0
            if backends is None:
                seen = [self._lone(await self._live.load())]
            else:
                seen = [_of_backend(one) for one in backends]
        self._note(seen)

    async def sample(self) -> None:
        """Remember the figures of this moment."""
        figures = await self._live.read()
        self._history.add(figures, hit_rate(self._hits.values()))

    def _note(self, seen: Sequence[Seen]) -> None:
        after = {one.name: one for one in seen}
        now = time.monotonic()
        self._hits = {name: self._hits.get(name) or RecentHits() for name in after}
        for name, one in after.items():
            self._hits[name].add(now, one.load)
        if self._looked or not after:
            self._events.extend(_changes(self._seen, after, int(time.time())))
        self._seen = after
        self._looked = self._looked or bool(after)

    def _lone(self, load: Load | None = None) -> Seen:
        if load is None:
            before = self._seen.get(LONE_ENGINE)
            load = before.load if before is not None else Load()
        ready = self._session.ready
        state, reason = ("ready", "") if ready else ("down", self._session.unavailable().message)
        running = load.running_requests if load.HasField("running_requests") else None
        return Seen(LONE_ENGINE, "", "rhizome", state, reason, running, None, None, load)

    async def _keep_looking(self) -> None:
        while True:
            began = time.monotonic()
            for one in (self.look, self.sample):
                try:
                    await one()
                except Exception:  # the page is not worth more than a line in the log
                    _log.exception("looking at the engines failed")
            await asyncio.sleep(max(_LOOK_EVERY_S / 4, began + _LOOK_EVERY_S - time.monotonic()))


def _of_backend(backend: Backend) -> Seen:
    return Seen(
        name=backend.name,
        address=backend.address,
        kind=backend.kind,
        state=_STATES.get(backend.state, "unknown"),
        reason=backend.reason,
        in_flight_requests=backend.in_flight_requests,
        total_requests=backend.total_requests,
        failed_requests=backend.failed_requests,
        load=backend.load if backend.HasField("load") else Load(),
        resumed_requests=backend.resumed_requests,
    )


def _lost(seen: Seen, error: EngineError) -> Seen:
    """Nobody can tell any more how an engine is."""
    return replace(
        seen,
        state="unknown",
        reason=error.message,
        in_flight_requests=None,
        failed_requests=None,
        load=Load(),
    )


def _changes(before: Mapping[str, Seen], after: Mapping[str, Seen], at: int) -> list[Event]:
    events = [Event(at, "removed", name) for name in before if name not in after]
    for name, now in after.items():
        was = before.get(name)
        if was is None:
            events.append(Event(at, "added", name))
        elif was.state != now.state:
            kind = "unreachable" if now.state == "unknown" else now.state
            events.append(Event(at, kind, name, now.reason))
        elif _restarted(was.load, now.load):
            events.append(Event(at, "restarted", name))
        if was is not None and (more := now.resumed_requests - was.resumed_requests) > 0:
            events.append(Event(at, "resumed", name, "", more))
    return events


def _restarted(before: Load, after: Load) -> bool:
    return bool(before.instance_id and after.instance_id and before.instance_id != after.instance_id)
