"""A local stack in the foreground: the services of a plan as child processes, which end with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import psutil

from rhizome_launcher.plan import (
    LAYERS,
    STACK_MARK,
    Kind,
    StackError,
    StackPlan,
    StackSettings,
    gateway_url,
    make_plan,
)
from rhizome_launcher.readiness import all_serving
from rhizome_launcher.service_process import ServiceProcess

STOP_TIMEOUT_S = 15.0
KILL_TIMEOUT_S = 2.0
POLL_INTERVAL_S = 0.1


class Stoppable(Protocol):
    """A service, as far as stopping it goes."""

    async def stop(self, timeout_s: float) -> None:
        """End it; kill it after `timeout_s`."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


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
        self._plan: StackPlan | None = None
        self.engine_addresses: list[str] = []
        self.proxy_address = ""

    @property
    def url(self) -> str:
        """The gateway's address as a browser on this host reaches it."""
        if self._plan is None:
            return gateway_url(self.settings.host, self.settings.port)
        return self._plan.url

    async def __aenter__(self) -> Self:
        """See `start`."""
        await self.start()
        return self

    async def start(self) -> None:
        """Start everything and wait until the gateway can answer with every engine.

        Raises:
            StackError: the model is missing, a port is taken, or a service ends early; nothing runs then.
        """
        make_log_dir(self.settings.log_dir)
        plan = self._plan = make_plan(self.settings)
        self.engine_addresses = plan.addresses("engine")
        self.proxy_address = "".join(plan.addresses("proxy")[:1])
        self.services = [
            ServiceProcess(
                service.name,
                service.module,
                list(service.arguments),
                log_path=self.settings.log_dir / f"{service.name}.log",
                environment=service.environment,
                on_line=self._on_line,
            )
            for service in plan.services
        ]
        try:
            await asyncio.gather(*(service.start() for service in self.services))
            await self._wait_ready(plan)
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
        plan = self._plan
        if plan is None:
            return
        kinds = [service.kind for service in plan.services]
        try:
            await stop_in_order(list(zip(kinds, self.services, strict=True)), STOP_TIMEOUT_S)
        finally:
            remove_traces(plan)

    async def _wait_ready(self, plan: StackPlan) -> None:
        deadline = time.monotonic() + self.settings.ready_timeout_s
        while True:
            self._raise_if_ended()
            if await all_serving(plan.services):
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


async def stop_in_order(services: Sequence[tuple[Kind, Stoppable]], timeout_s: float) -> None:
    """Stop services in the order in which requests reach them, each layer within `timeout_s`.

    However this ends, also when it is cancelled, none of them runs afterwards.
    """
    try:
        for layer in LAYERS:
            members = [service for kind, service in services if kind == layer]
            await asyncio.gather(*(service.stop(timeout_s) for service in members))
    finally:
        for _, service in services:
            service.kill()
        await asyncio.gather(*(service.stop(KILL_TIMEOUT_S) for _, service in services))


def remove_traces(plan: StackPlan) -> None:
    """Kill what services left behind when they were killed themselves, and remove their sockets."""
    for process in marked(plan.mark):
        with contextlib.suppress(psutil.Error):
            process.kill()
    if plan.sockets is not None:
        shutil.rmtree(plan.sockets, ignore_errors=True)


def marked(mark: str) -> list[psutil.Process]:
    """Processes of this user that belong to a stack, whoever started them."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(STACK_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def make_log_dir(folder: Path) -> None:
    """Make it where it is missing.

    Raises:
        StackError: this user may not write there.
    """
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
