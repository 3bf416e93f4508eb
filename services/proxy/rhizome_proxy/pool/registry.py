"""All engines of the proxy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from rhizome_proxy.kinds.base import Engine
from rhizome_proxy.pool.backend import Backend, BackendRules, State

_log = logging.getLogger(__name__)

Watch = Callable[[Backend], Coroutine[Any, Any, None]]
"""Checks one backend for as long as it is in the pool."""


class Registry:
    """Backends by name; each one is watched from the moment it enters until it leaves.

    Args:
        open_engine: makes the connection to an address.
        watch: checks a backend.
        rules: for all backends.
    """

    def __init__(
        self, open_engine: Callable[[str], Engine], watch: Watch, rules: BackendRules | None = None
    ) -> None:
        self._rules = rules or BackendRules()
        self._open_engine = open_engine
        self._watch = watch
        self._backends: dict[str, Backend] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._listeners: list[Callable[[], None]] = []

    def __iter__(self) -> Iterator[Backend]:
        """All backends, sorted by name."""
        return iter([self._backends[name] for name in sorted(self._backends)])

    def __len__(self) -> int:
        """How many backends there are."""
        return len(self._backends)

    def get(self, name: str) -> Backend | None:
        """The backend of that name."""
        return self._backends.get(name)

    def ready(self) -> list[Backend]:
        """Backends that get requests.

        Where nothing but ejected ones are left these do: a doubtful engine is better than none.
        """
        ready = [backend for backend in self._backends.values() if backend.ready]
        return ready or [backend for backend in self._backends.values() if backend.healthy]

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a backend enters, leaves or changes its state."""
        self._listeners.append(listener)

    def off_change(self, listener: Callable[[], None]) -> None:
        """Take back `on_change`."""
        self._listeners.remove(listener)

    def add(self, address: str, name: str = "") -> Backend:
        """Let an engine in; it gets requests after its first successful check.

        Raises:
            ValueError: the name is taken.
        """
        name = name or address
        if name in self._backends:
            raise ValueError(f"a backend named {name!r} exists; remove it first or choose another name")
        backend = Backend(name, address, self._open_engine(address), self._rules, self._may_eject)
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
        watcher = self._watchers.pop(name)
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        backend.drain()
        backend.cut()
        await backend.engine.close()
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
        for listener in list(self._listeners):
            listener()
