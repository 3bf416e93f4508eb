"""Where backends come from: a list, a file that is read again when it changed, names that DNS resolves."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import Final

from rhizome_backends.open_server import check_spec
from rhizome_backends.spec import BackendSpec, read_specs
from rhizome_proxy.pool.registry import Registry

_FILE_POLL_S: Final = 1.0
_log = logging.getLogger(__name__)


class Discovery:
    """Keeps the registry in line with what is listed.

    A backend that is no longer listed gets nothing new and leaves when its open requests ended, or went on
    elsewhere after `drain_timeout_s`. A look-up that fails and a file that cannot be read change nothing: a
    broken resolver or a slip of the pen must not empty the pool. Backends that an operator added stay; those
    that an operator removed stay away until they are listed anew, or otherwise.

    Args:
        specs: the list.
        registry: the pool.
        interval_s: time between two look-ups.
        file: more of them.
        drain_timeout_s: `None` to wait for ever.
    """

    def __init__(
        self,
        specs: tuple[BackendSpec, ...],
        registry: Registry,
        interval_s: float,
        *,
        file: Path | None = None,
        drain_timeout_s: float | None = None,
    ) -> None:
        self._specs = specs
        self._registry = registry
        self._interval_s = interval_s
        self._file = file
        self._drain_timeout_s = drain_timeout_s
        self._found: dict[str, frozenset[str]] = {}
        self._listed: dict[str, BackendSpec] = {}
        self._from_file: tuple[BackendSpec, ...] = ()
        self._file_state: tuple[int, int, int] | None = None

    async def start(self) -> None:
        """Let in what is listed, and look names up once."""
        self._read_file()
        await self.refresh()

    async def run(self) -> None:
        """Look names up and watch the file until cancelled."""
        loop = asyncio.get_running_loop()
        next_look_up = loop.time() + self._interval_s
        while self._file is not None or self._names:
            # The file may gain names at any time, so its pace is the finer one.
            pause_s = min(_FILE_POLL_S, self._interval_s) if self._file is not None else self._interval_s
            await asyncio.sleep(pause_s)
            if self._read_file() or loop.time() >= next_look_up:
                await self.refresh()
                next_look_up = loop.time() + self._interval_s

    async def refresh(self) -> None:
        """Look names up once and apply what changed."""
        await asyncio.gather(*(self._resolve(spec) for spec in self._names))
        listed = {spec.name: spec for spec in (*self._specs, *self._from_file) if not spec.resolve}
        for spec in self._names:
            for host in sorted(self._found.get(spec.name, ())):
                one = spec.at(host)
                listed.setdefault(one.name, one)
        before, self._listed = self._listed, listed
        for name, spec in sorted(listed.items()):
            old = before.get(name)
            if old == spec:
                continue
            if self._registry.get(name) is None:
                self._registry.add(spec)
            elif old is None:
                self._registry.restore(name)
            else:
                self._registry.replace(spec, self._drain_timeout_s)
        for name in sorted(before.keys() - listed.keys()):
            self._registry.retire(name, self._drain_timeout_s)

    @property
    def _names(self) -> list[BackendSpec]:
        return [spec for spec in (*self._specs, *self._from_file) if spec.resolve]

    def _read_file(self) -> bool:
        """Whether the file says something new."""
        if self._file is None:
            return False
        try:
            status = self._file.stat()
            state = (status.st_mtime_ns, status.st_size, status.st_ino)
            if state == self._file_state:
                return False
            self._file_state = state
            specs = read_specs(self._file)
            for spec in specs:
                check_spec(spec)
            self._from_file = specs
        except (OSError, ValueError) as error:
            _log.warning("the backends stay as they are: %s", error)
            return False
        _log.info("%s lists %d backends", self._file, len(self._from_file))
        return True

    async def _resolve(self, spec: BackendSpec) -> None:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(spec.host, spec.port, type=socket.SOCK_STREAM)
        except OSError as error:
            _log.warning("looking up %s failed, its backends stay as they are: %s", spec.host, error)
            return
        addresses = frozenset(str(sockaddr[0]) for *_, sockaddr in found)
        if addresses != self._found.get(spec.name):
            _log.info("%s resolves to %s", spec.host, ", ".join(sorted(addresses)))
        self._found[spec.name] = addresses
