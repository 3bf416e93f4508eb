"""All backends of the proxy."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Collection, Coroutine, Iterator
from dataclasses import replace
from typing import Any

from rhizome_backends.base import Server
from rhizome_backends.spec import BackendSpec
from rhizome_proxy.pool.backend import Backend, BackendRules, State
from rhizome_routing.admission import Fleet

_log = logging.getLogger(__name__)

Watch = Callable[[Backend], Coroutine[Any, Any, None]]
"""Checks one backend for as long as it is in the pool."""


class Registry:
    """Backends by name; each one is watched from the moment it enters until it leaves.

    Args:
        open_server: makes the connection.
        watch: checks a backend.
        rules: for all backends.
        fleet: what they have room for together.

    Attributes:
        version: grows with whatever may change who gets which requests, but for ejections.
    """

    def __init__(
        self,
        open_server: Callable[[BackendSpec], Server],
        watch: Watch,
        rules: BackendRules | None = None,
        fleet: Fleet | None = None,
    ) -> None:
        self._fleet = fleet
        self.version = 0
        self._rules = rules or BackendRules()
        self._open_server = open_server
        self._watch = watch
        self._backends: dict[str, Backend] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._listeners: list[Callable[[], None]] = []

    def __iter__(self) -> Iterator[Backend]:
        """All backends, sorted by name."""
        return iter([self._backends[name] for name in sorted(self._backends)])

    @property
    def members(self) -> Collection[Backend]:
        """All backends, in the order in which they came."""
        return self._backends.values()

    def __len__(self) -> int:
        """How many backends there are."""
        return len(self._backends)

    def get(self, name: str) -> Backend | None:
        """The backend of that name."""
        return self._backends.get(name)

    def ready(self, *, http: bool = False) -> list[Backend]:
        """Backends that get requests of one of the faces."""
        return trusted([one for one in self._backends.values() if one.http is http and one.healthy])

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a backend enters, leaves or changes its state."""
        self._listeners.append(listener)

    def off_change(self, listener: Callable[[], None]) -> None:
        """Take back `on_change`."""
        self._listeners.remove(listener)

    def add(self, spec: BackendSpec) -> Backend:
        """Let a server in; it gets requests after its first successful check.

        Raises:
            ValueError: the name is taken, or nobody can talk to such a server.
        """
        name = spec.name
        if name in self._backends:
            raise ValueError(f"a backend named {name!r} exists; remove it first or choose another name")
        backend = Backend(spec, self._open_server(spec), self._rules, self._may_eject, self._fleet)
        backend.on_change = self._changed
        self._backends[name] = backend
        self._watchers[name] = asyncio.create_task(self._watch(backend), name=f"watch {name}")
        _log.info("backend %s joined the pool", name)
        self._changed()
        return backend

    async def remove(self, name: str) -> None:
        """Forget an engine and close its connection; requests that are open there go on elsewhere."""
        backend = self._backends.pop(name, None)
        if backend is None:
            return
        self.version += 1
        watcher = self._watchers.pop(name)
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        backend.drain()
        backend.cut()
        await backend.server.close()
        _log.info("backend %s left the pool", name)
        self._changed()

    async def drain(self, backend: Backend, timeout_s: float | None) -> int:
        """Send an engine nothing new, wait for its open requests, and move what is left after `timeout_s`.

        Returns:
            How many requests were left.
        """
        backend.drain()
        try:
            async with asyncio.timeout(timeout_s):
                await backend.wait_idle()
        except TimeoutError:
            if backend.state is not State.DRAINING:  # taken back meanwhile
                return 0
            left = backend.in_flight
            _log.info("%d requests of backend %s go on elsewhere", left, backend.name)
            backend.cut()
            return left
        return 0

    def retire(self, name: str, timeout_s: float | None = None) -> None:
        """Drain an engine and forget it then."""
        backend = self._backends.get(name)
        if backend is None or name in self._leaving:
            return
        backend.drain()
        self._leaving[name] = asyncio.create_task(self._leave(backend, timeout_s), name=f"retire {name}")

    def replace(self, spec: BackendSpec, timeout_s: float | None = None) -> None:
        """Let what is set for a backend change; where it is another server now, the old one is retired."""
        old = self._backends[spec.name]
        if replace(old.spec, weight=spec.weight, priority=spec.priority, aliases=spec.aliases) == spec:
            old.spec = spec
            self._changed()
            return
        leaving = next(name for n in itertools.count(1) if (name := f"{spec.name}~{n}") not in self._backends)
        old.name = leaving
        self._backends[leaving] = self._backends.pop(spec.name)
        self._watchers[leaving] = self._watchers.pop(spec.name)
        if (task := self._leaving.pop(spec.name, None)) is not None:
            self._leaving[leaving] = task
        self.add(spec)
        self.retire(leaving, timeout_s)

    def restore(self, name: str) -> None:
        """Take back `retire` or `drain` if the engine has not left yet."""
        leaving = self._leaving.pop(name, None)
        if leaving is not None:
            leaving.cancel()
        backend = self._backends.get(name)
        if backend is not None and backend.state is State.DRAINING:
            backend.drain(False)

    async def wait_checked(self, timeout_s: float) -> None:
        """Return once every backend was checked, or after `timeout_s`."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        changed = asyncio.Event()
        self.on_change(changed.set)
        try:
            while not all(backend.checked for backend in self._backends.values()):
                changed.clear()
                async with asyncio.timeout_at(deadline):
                    await changed.wait()
        except TimeoutError:
            pass
        finally:
            self.off_change(changed.set)

    async def close(self) -> None:
        """Forget all engines."""
        leaving = list(self._leaving.values())
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        await asyncio.gather(*(self.remove(name) for name in list(self._backends)))

    def _may_eject(self) -> bool:
        ejected = sum(backend.outlier.ejected for backend in self._backends.values())
        return ejected + 1 <= self._rules.outlier.max_share * len(self._backends)

    async def _leave(self, backend: Backend, timeout_s: float | None) -> None:
        await self.drain(backend, timeout_s)
        self._leaving.pop(backend.name, None)
        await self.remove(backend.name)

    def _changed(self) -> None:
        self.version += 1
        for listener in list(self._listeners):
            listener()


def trusted(healthy: list[Backend]) -> list[Backend]:
    """Those that are not ejected, or all where no other is left: a doubtful server is better than none."""
    for backend in healthy:
        if backend.outlier.until is not None:
            return [one for one in healthy if not one.outlier.ejected] or healthy
    return healthy
