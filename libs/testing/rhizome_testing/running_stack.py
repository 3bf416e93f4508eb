"""A local stack of real processes for tests that are not asynchronous themselves."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc

from rhizome.proxy.v1 import proxy_service_pb2, proxy_service_pb2_grpc
from rhizome_launcher.plan import StackSettings
from rhizome_launcher.service_process import ServiceProcess
from rhizome_launcher.stack import Stack
from rhizome_testing.ports import free_port

DEMO_MODEL = Path(__file__).resolve().parents[3] / "models" / "demo"

T = TypeVar("T")


class RunningStack:
    """A `Stack` whose event loop runs in a thread of its own.

    Attributes:
        stack: the stack; its plain attributes can be read from any thread.
    """

    def __init__(self, stack: Stack, loop: asyncio.AbstractEventLoop) -> None:
        self.stack = stack
        self._loop = loop

    @property
    def url(self) -> str:
        """The gateway's address."""
        return self.stack.url

    def service(self, name: str) -> ServiceProcess:
        """The service of that name, such as `engine-0`."""
        return next(service for service in self.stack.services if service.name == name)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout_s: float = 60) -> T:
        """Run something on the stack's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)


@contextlib.contextmanager
def running_stack(settings: StackSettings) -> Iterator[RunningStack]:
    """Start a stack, and stop it at the end of the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="stack", daemon=True)
    thread.start()
    stack = Stack(settings)
    running = RunningStack(stack, loop)
    try:
        running.run(stack.__aenter__(), settings.ready_timeout_s + 10)
        if stack.proxy_address:
            _wait_all_ready(stack.proxy_address, settings.ready_timeout_s)
        yield running
    finally:
        running.run(stack.stop(), 60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def _wait_all_ready(proxy_address: str, timeout_s: float) -> None:
    """Wait until the proxy has seen what the engines say already: that they are ready, and with which model.

    Raises:
        TimeoutError: it did not.
    """
    deadline = time.monotonic() + timeout_s
    with grpc.insecure_channel(proxy_address) as channel:
        stub = proxy_service_pb2_grpc.ProxyServiceStub(channel)
        while True:
            backends = stub.ListBackends(proxy_service_pb2.ListBackendsRequest(), timeout=10).backends
            if all(one.state == proxy_service_pb2.BACKEND_STATE_READY and one.models for one in backends):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"the proxy at {proxy_address} does not take all engines as ready")
            time.sleep(0.02)


def demo_stack_settings(log_dir: Path, **changes: Any) -> StackSettings:
    """Settings of a stack of two engines on the bundled model, on whatever ports are free."""
    values: dict[str, Any] = {
        "model": DEMO_MODEL,
        "engines": 2,
        "port": 18000,
        "strict_port": False,
        "proxy_port": free_port(),  # the usual ones may become some connection's before an engine listens
        "engine_arguments": ("--served-model-name", "rhizome-demo"),
        "log_dir": log_dir,
        "ready_timeout_s": 90.0,
    }
    return StackSettings(**{**values, **changes})
