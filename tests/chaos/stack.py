"""A whole stack of real processes that are killed and started again: gateway, proxy, two engines, two cores.

A supervisor would start again what died; here the test does it, with the same command line. Only the core is
started again by its front.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
import psutil

from rhizome.engine.v1.engine_service_pb2 import GetLoadRequest
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.load_pb2 import Load
from rhizome.proxy.v1.proxy_service_pb2 import BACKEND_STATE_READY, ListBackendsRequest
from rhizome.proxy.v1.proxy_service_pb2_grpc import ProxyServiceStub
from rhizome_engine.core_record import read_core_record
from rhizome_testing.otlp_sink import OtlpSink
from rhizome_testing.ports import free_ports
from rhizome_testing.processes import ProcessFixture
from rhizome_testing.running_stack import DEMO_MODEL

MODEL = "rhizome-demo"
ENGINES = 2
CACHE_TOKENS = 16_384
"""That each core has room for."""
READY_S = 90.0
_PROBE = Path(__file__).parent / "probe"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Service:
    """One process of the stack, under a name, started any number of times with the same command line.

    Attributes:
        ready: whether it serves.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        ready: Callable[[], bool],
    ) -> None:
        self.name = name
        self.ready = ready
        self._command = list(command)
        self._folder = folder
        self._environment = environment
        self.fixture: ProcessFixture | None = None

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self.fixture is not None
        return self.fixture.pid

    @property
    def output(self) -> str:
        """Of all its starts."""
        return self.fixture.output if self.fixture else ""

    def start(self) -> None:
        """Start it; `wait_ready` waits for what it then does."""
        self.fixture = ProcessFixture(
            [sys.executable, "-m", *self._command],
            log=self._folder / f"{self.name}.log",
            environment=self._environment,
            name=self.name,
        )

    def wait_ready(self) -> None:
        """Wait until it serves."""
        assert self.fixture is not None
        self.fixture.wait_until(self.ready, "it serves", READY_S)

    def signal(self, number: signal.Signals) -> None:
        """To this process alone."""
        assert self.fixture is not None
        self.fixture.signal(number)

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        self.signal(signal.SIGKILL)
        assert self.fixture is not None
        self.fixture.wait(10)

    def stop(self) -> None:
        """End it as an operator does, with everything that it started."""
        if self.fixture is not None:
            self.fixture.terminate(20)


@dataclass(frozen=True)
class Held:
    """What a process holds.

    Attributes:
        pid: the process; what another one holds is nothing to compare with.
        files: open descriptors.
        tasks: asyncio tasks that are not done, by name.
        threads: as Python counts them.
        rss: bytes that are resident.
    """

    pid: int
    files: int
    tasks: Mapping[str, int]
    threads: int
    rss: int = field(compare=False)


class WholeStack:
    """Everything that a request passes, with an OTLP collector beside it.

    Args:
        folder: for logs and sockets.
        engine_arguments: more of the engines' command line.
        gateway_arguments: more of the gateway's.

    Attributes:
        sink: has the spans of all processes.
        services: by name: `gateway`, `proxy`, `engine-0`, `engine-1`.
        url: of the gateway.
        proxy: `host:port`.
        engines: `host:port` of each.
        cores: ipc endpoint of each engine's core.
    """

    def __init__(
        self,
        folder: Path,
        *,
        engine_arguments: Sequence[str] = (),
        gateway_arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        gateway, proxy, admin, *engines = free_ports(3 + ENGINES)
        self.folder = folder
        self.sink = OtlpSink()
        self.url, self.port = f"http://127.0.0.1:{gateway}", gateway
        self.proxy, self.proxy_port = f"127.0.0.1:{proxy}", proxy
        self.engines = [f"127.0.0.1:{port}" for port in engines]
        self._probes = folder / "probes"
        self._probes.mkdir(parents=True)
        sockets = folder / "sockets"
        sockets.mkdir(mode=0o700)
        self.cores = [f"ipc://{sockets}/{index}.ipc" for index in range(ENGINES)]
        self._stack = ExitStack()
        self._environment = {
            **self.sink.environment,
            "RHIZOME_CHAOS_PROBE": str(self._probes),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_PROBE), os.environ.get("PYTHONPATH", "")))),
            **(environment or {}),
        }
        self.services: dict[str, Service] = {}
        for index, (port, core) in enumerate(zip(engines, self.cores, strict=True)):
            self._add(
                f"engine-{index}",
                lambda index=index: self.load(index) is not None,  # type: ignore[misc]
                *("rhizome_engine", "--model", str(DEMO_MODEL), "--served-model-name", MODEL),
                *("--port", str(port), "--core-endpoint", core, "--device", "cpu", "--num-threads", "1"),
                *("--max-cache-tokens", str(CACHE_TOKENS), *engine_arguments),
            )
        self._add(
            "proxy",
            self._proxy_ready,
            *("rhizome_proxy", "--port", str(proxy), "--admin-port", str(admin)),
            *("--backends", ",".join(self.engines), "--stall-timeout-s", "2", "--slow-start-s", "0"),
        )
        self._add(
            "gateway",
            lambda: self.status("/ready") == 200,
            *("rhizome_gateway", "--port", str(gateway), "--engine", self.proxy),
            *("--model-refresh-s", "0.2", "--idle-timeout-s", "600", *gateway_arguments),
        )

    def __enter__(self) -> Self:
        with self._stack as starting:
            starting.callback(self.sink.close)
            for service in self.services.values():
                starting.callback(service.stop)
                service.start()
            self.wait_ready()
            self._stack = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait_ready(self) -> None:
        """Wait until everything serves, and the proxy knows it."""
        for service in self.services.values():
            service.wait_ready()

    def core(self, index: int) -> psutil.Process:
        """The core of an engine, whoever started it.

        Raises:
            LookupError: there is none now.
        """
        record = read_core_record(self.cores[index])
        if record is None:
            raise LookupError(f"no core listens on {self.cores[index]}")
        return psutil.Process(record.pid)

    def load(self, index: int) -> Load | None:
        """What an engine says of itself; `None` where it does not."""
        with grpc.insecure_channel(self.engines[index]) as channel:
            try:
                answer = EngineServiceStub(channel).GetLoad(GetLoadRequest(), timeout=5)
            except grpc.RpcError:
                return None
            load: Load = answer.load
            return load

    def in_flight(self) -> int:
        """Requests that the proxy has open.

        Raises:
            grpc.RpcError: it does not answer.
        """
        with grpc.insecure_channel(self.proxy) as channel:
            backends = ProxyServiceStub(channel).ListBackends(ListBackendsRequest(), timeout=5).backends
        return sum(one.in_flight_requests for one in backends)

    def status(self, path: str) -> int:
        """Of an answer of the gateway to GET; 0 for none."""
        try:
            with _DIRECT.open(f"{self.url}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def processes(self) -> dict[str, int]:
        """Process ids of all parts, the cores included."""
        parts = {name: service.pid for name, service in self.services.items()}
        return parts | {f"core-{index}": self.core(index).pid for index in range(ENGINES)}

    def held(self) -> dict[str, Held]:
        """What each process holds now."""
        return {name: self._held(pid) for name, pid in self.processes().items()}

    def _held(self, pid: int) -> Held:
        process = psutil.Process(pid)
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(10)
            asking.connect(str(self._probes / f"{pid}.sock"))
            told: dict[str, Any] = json.loads(b"".join(iter(lambda: asking.recv(65536), b"")))
        files, rss = process.num_fds(), process.memory_info().rss
        return Held(pid, files, told["tasks"], told["threads"], rss)

    def _proxy_ready(self) -> bool:
        with grpc.insecure_channel(self.proxy) as channel:
            try:
                backends = ProxyServiceStub(channel).ListBackends(ListBackendsRequest(), timeout=5).backends
            except grpc.RpcError:
                return False
        return len(backends) == ENGINES and all(
            one.state == BACKEND_STATE_READY and one.models for one in backends
        )

    def _add(self, name: str, ready: Callable[[], bool], *command: str) -> None:
        folder = self.folder / "logs"
        self.services[name] = Service(name, command, folder, self._environment, ready)


def eventually(true: Callable[[], bool], why: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Poll until something is true.

    Raises:
        AssertionError: it never was; `why` tells what was seen last.
    """
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {why()}"
        time.sleep(0.05)
