"""A local stack: engines, a proxy where there are several, and a gateway, as child processes."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from rhizome_launcher.readiness import engines_serving
from rhizome_launcher.service_process import ServiceProcess

PROXY_PORT = 50050
ENGINE_PORT = PROXY_PORT + 1
STOP_TIMEOUT_S = 15.0
DRAIN_TIMEOUT_S = 10
"""Time for open answers; shorter, so that the gateway says goodbye before it is killed."""
KILL_TIMEOUT_S = 2.0
POLL_INTERVAL_S = 0.1


class StackError(Exception):
    """A stack that cannot start, with the reason and what to do, for a person."""


@dataclass(frozen=True, slots=True)
class StackSettings:
    """What to start.

    Attributes:
        model: checkpoint directory.
        engines: how many engines; a proxy joins from two on, or with `proxy`.
        host: address that the gateway listens on; everything else stays on loopback.
        port: the gateway's port.
        proxy: start a proxy even for one engine.
        direct: without a proxy, let the gateway talk to the engine's core over ZeroMQ, past its gRPC front.
        strict_port: refuse when `port` is taken, instead of taking the next free one.
        proxy_port: the proxy's port; the engines have those behind it. Where one is taken, the next free one.
        engine_arguments: passed on to every engine.
        gateway_arguments: passed on to the gateway.
        environment: added to the environment of every service.
        log_dir: where each service's output goes.
        ready_timeout_s: how long to wait until everything serves, in seconds.
    """

    model: Path
    engines: int = 1
    host: str = "127.0.0.1"
    port: int = 8000
    proxy: bool = False
    direct: bool = True
    strict_port: bool = True
    proxy_port: int = PROXY_PORT
    engine_arguments: tuple[str, ...] = ()
    gateway_arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    log_dir: Path = Path(".run/logs")
    ready_timeout_s: float = 600.0


class Stack:
    """The running processes; an async context manager that stops them however the block ends.

    Attributes:
        services: the processes, engines first.
        engine_addresses: host:port of each engine.
        proxy_address: host:port of the proxy, empty without one.

    Raises:
        StackError: on entering, as `start` does.
    """

    def __init__(self, settings: StackSettings, *, on_line: Callable[[str, str], None] | None = None) -> None:
        self.settings = settings
        self.services: list[ServiceProcess] = []
        self._on_line = on_line
        self._gateway_port = settings.port
        self.engine_addresses: list[str] = []
        self.proxy_address = ""
        self._sockets: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        """The gateway's address as a browser on this host reaches it."""
        anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
        host = anywhere.get(self.settings.host, self.settings.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self._gateway_port}"

    async def __aenter__(self) -> Self:
        """See `start`."""
        await self.start()
        return self

    async def start(self) -> None:
        """Start everything and wait until the gateway can answer with every engine.

        Raises:
            StackError: the model is missing, a port is taken, or a service ends early; nothing runs then.
        """
        self._plan()
        try:
            await asyncio.gather(*(service.start() for service in self.services))
            await self._wait_ready()
        except BaseException:
            await self.stop()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything."""
        await self.stop()

    async def wait(self) -> ServiceProcess:
        """Return the first service that ends by itself."""
        tasks = {asyncio.create_task(service.wait()): service for service in self.services}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return tasks[done.pop()]
        finally:
            for task in tasks:
                task.cancel()

    async def stop(self) -> None:
        """Stop the services in the order in which requests reach them, so that nobody loses an answer.

        Cancelled, it kills what is left.
        """
        try:
            for layer in ("gateway", "proxy", "engine"):
                members = [service for service in self.services if service.name.startswith(layer)]
                await asyncio.gather(*(service.stop(STOP_TIMEOUT_S) for service in members))
        finally:
            for service in self.services:
                service.kill()
            await asyncio.gather(*(service.stop(KILL_TIMEOUT_S) for service in self.services))
            if self._sockets is not None:
                self._sockets.cleanup()

    def _plan(self) -> None:
        settings = self.settings
        if not (settings.model / "config.json").is_file():
            raise StackError(
                f"{settings.model} is no checkpoint: there is no config.json. Give --model a directory with "
                "config.json, tokenizer.json and *.safetensors, as downloaded from a model hub."
            )
        if settings.engines < 1:
            raise StackError(f"--engines must be at least 1, not {settings.engines}.")
        _make_log_dir(settings.log_dir)
        taken: set[int] = set()
        self._gateway_port = _choose_port(settings.host, settings.port, taken, strict=settings.strict_port)
        first = settings.proxy_port + 1
        ports = [_choose_port("127.0.0.1", first + i, taken) for i in range(settings.engines)]
        self.engine_addresses = [f"127.0.0.1:{port}" for port in ports]
        threads = max(1, (os.cpu_count() or 1) // settings.engines)
        core_endpoint = self._direct_endpoint()
        for index, port in enumerate(ports):
            self._add(
                f"engine-{index}" if len(ports) > 1 else "engine",
                "rhizome_engine",
                [
                    *("--model", str(settings.model), "--port", str(port)),
                    *(("--core-endpoint", core_endpoint) if core_endpoint else ()),
                    *settings.engine_arguments,
                ],
                {
                    "RHIZOME_ENGINE_NUM_THREADS": str(threads),
                    # Each measures what is free before the others have taken theirs.
                    "RHIZOME_ENGINE_MEMORY_SHARE": str(round(1 / settings.engines, 4)),
                },
            )
        target = core_endpoint or self.engine_addresses[0]
        if settings.proxy or len(ports) > 1:
            backends = ",".join(self.engine_addresses)
            proxy_port = _choose_port("127.0.0.1", settings.proxy_port, taken)
            self._add("proxy", "rhizome_proxy", ["--port", str(proxy_port), "--backends", backends])
            target = self.proxy_address = f"127.0.0.1:{proxy_port}"
        gateway = ["--host", settings.host, "--port", str(self._gateway_port), "--engine", target]
        gateway += ["--graceful-shutdown-s", str(DRAIN_TIMEOUT_S), *settings.gateway_arguments]
        self._add("gateway", "rhizome_gateway", gateway)

    def _direct_endpoint(self) -> str:
        """Where the only engine's core listens, if the gateway talks to it; empty where it goes by gRPC."""
        settings = self.settings
        named = any(argument.startswith("--core-endpoint") for argument in settings.engine_arguments)
        if settings.proxy or settings.engines > 1 or not settings.direct or named:
            return ""
        self._sockets = tempfile.TemporaryDirectory(prefix="rhizome-")  # private to this user
        return f"ipc://{self._sockets.name}/core.ipc"

    def _add(
        self, name: str, module: str, arguments: list[str], environment: dict[str, str] | None = None
    ) -> None:
        self.services.append(
            ServiceProcess(
                name,
                module,
                arguments,
                log_path=self.settings.log_dir / f"{name}.log",
                environment={**(environment or {}), **self.settings.environment},
                on_line=self._on_line,
            )
        )

    async def _wait_ready(self) -> None:
        deadline = time.monotonic() + self.settings.ready_timeout_s
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while True:
                self._raise_if_ended()
                if await engines_serving(self.engine_addresses) and await self._gateway_ready(session):
                    return
                if time.monotonic() > deadline:
                    waited, logs = self.settings.ready_timeout_s, self.settings.log_dir
                    raise StackError(f"not ready after {waited:.0f} s; logs in {logs}")
                await asyncio.sleep(POLL_INTERVAL_S)

    def _raise_if_ended(self) -> None:
        for service in self.services:
            if service.exit_code is not None:
                raise StackError(
                    f"{service.name} ended with exit code {service.exit_code} before it was ready:\n"
                    f"{service.log_tail()}"
                )

    async def _gateway_ready(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self.url}/ready") as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    return _listening_problem(host, port) is None


def _listening_problem(host: str, port: int) -> OSError | None:
    """What would keep a server from listening there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def _choose_port(host: str, wanted: int, taken: set[int], *, strict: bool = False) -> int:
    """Return `wanted` or, unless `strict`, the next free port after it; remember it in `taken`."""
    if strict and (problem := _listening_problem(host, wanted)):
        if problem.errno == errno.EADDRINUSE:
            raise StackError(f"port {wanted} on {host} is taken; choose another one with --port.")
        raise StackError(
            f"nothing can listen on port {wanted} of {host} ({problem.strerror}); choose an address of this "
            "machine with --host, and a port that you may use with --port."
        )
    for port in range(wanted, min(wanted + 1000, 65536)):
        if port not in taken and port_is_free(host, port):
            taken.add(port)
            return port
    raise StackError(f"no free port from {wanted} on; stop something, or choose another range.")


def _make_log_dir(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise StackError(
            f"the logs cannot be written to {folder.absolute()}; "
            "run this from a directory that you may write to."
        )
