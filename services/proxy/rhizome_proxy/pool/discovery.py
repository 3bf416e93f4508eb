"""Where engines come from: a list of addresses, or names that DNS resolves to all of them."""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass

from rhizome_proxy.pool.registry import Registry

DNS_PREFIX = "dns:///"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """One entry of the list of engines.

    Attributes:
        host: name or address, IPv6 without brackets.
        port: TCP port.
        resolve: every address of the name is an engine of its own.
    """

    host: str
    port: int
    resolve: bool

    @property
    def address(self) -> str:
        """host:port, IPv6 in brackets."""
        return _join(self.host, self.port)


def parse_targets(text: str) -> tuple[Target, ...]:
    """Read a list such as `10.0.0.1:50051,engine:50051,dns:///engines:50051`.

    Raises:
        ValueError: an entry is malformed or named twice.
    """
    targets: list[Target] = []
    for entry in (part.strip() for part in text.split(",")):
        if not entry:
            continue
        host, colon, port = entry.removeprefix(DNS_PREFIX).rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"{entry!r} is no engine; write host:port or dns:///name:port")
        if "/" in host or (":" in host and not bracketed):
            raise ValueError(
                f"{entry!r} is no engine; write host:port or dns:///name:port, no http://, IPv6 in brackets"
            )
        target = Target(host.strip("[]"), int(port), entry.startswith(DNS_PREFIX))
        if target in targets:
            raise ValueError(f"{entry!r} is named twice; name each engine once")
        targets.append(target)
    return tuple(targets)


class Discovery:
    """Keeps the registry in line with the targets.

    An engine that DNS no longer names gets nothing new and leaves when its open requests ended, or went on
    elsewhere after `drain_timeout_s`. A look-up that fails changes nothing: a broken resolver must not empty
    the pool.
    """

    def __init__(
        self,
        targets: tuple[Target, ...],
        registry: Registry,
        interval_s: float,
        drain_timeout_s: float | None = None,
    ) -> None:
        self._drain_timeout_s = drain_timeout_s
        self._static = [target.address for target in targets if not target.resolve]
        self._names = {target: frozenset[str]() for target in targets if target.resolve}
        self._registry = registry
        self._interval_s = interval_s

    async def start(self) -> None:
        """Let in the engines of the list, and look names up once."""
        for address in self._static:
            self._registry.add(address)
        await self.refresh()

    async def run(self) -> None:
        """Look names up until cancelled."""
        while self._names:
            await asyncio.sleep(self._interval_s)
            await self.refresh()

    async def refresh(self) -> None:
        """Look names up once and apply what changed."""
        before = self._named()
        await asyncio.gather(*(self._resolve(target) for target in self._names))
        after = self._named()
        for address in sorted(after - before):
            if self._registry.get(address) is None:
                self._registry.add(address)
            else:
                self._registry.restore(address)
        for address in sorted(before - after - set(self._static)):
            self._registry.retire(address, self._drain_timeout_s)

    def _named(self) -> set[str]:
        return {address for addresses in self._names.values() for address in addresses}

    async def _resolve(self, target: Target) -> None:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except OSError as error:
            _log.warning("looking up %s failed, its engines stay as they are: %s", target.host, error)
            return
        addresses = frozenset(_join(str(sockaddr[0]), target.port) for *_, sockaddr in found)
        if addresses != self._names[target]:
            _log.info("%s resolves to %s", target.host, ", ".join(sorted(addresses)))
        self._names[target] = addresses


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
