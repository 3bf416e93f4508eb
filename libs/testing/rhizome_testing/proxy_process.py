"""A real proxy in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
import psutil

from rhizome.proxy.v1.proxy_service_pb2 import (
    AddBackendRequest,
    Backend,
    DrainBackendRequest,
    ListBackendsRequest,
)
from rhizome.proxy.v1.proxy_service_pb2_grpc import ProxyServiceStub
from rhizome_testing.ports import free_ports
from rhizome_testing.processes import ProcessFixture

_CALL_TIMEOUT_S = 5.0


class ProxyProcess(ProcessFixture):
    """`python -m rhizome_proxy` on free ports of loopback.

    Args:
        backends: addresses of its pool.
        folder: for its log.
        *arguments: more of its command line.
        http: whether it has an HTTP face.
        ports: of the gRPC face, of the operators' listener and of the HTTP face; free ones unless given.
        name: of its log.
        environment: more of its variables.

    Attributes:
        port: of the gRPC face.
        http_port: of the HTTP face.
    """

    def __init__(
        self,
        backends: Sequence[str],
        folder: Path,
        *arguments: str,
        http: bool = False,
        ports: Sequence[int] = (),
        name: str = "proxy",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port, admin_port, self.http_port = ports or free_ports(3)
        command = [
            *(sys.executable, "-m", "rhizome_proxy", "--backends", ",".join(backends)),
            *("--port", str(self.port), "--admin-port", str(admin_port), *arguments),
            *(("--http-port", str(self.http_port)) if http else ()),
        ]
        super().__init__(command, log=folder / f"{name}.log", name=name, environment=environment)
        self.ports = (self.port, admin_port, self.http_port)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{admin_port}")
        self._stub = ProxyServiceStub(self._channel)

    def wait_ready(self, engines: int, timeout_s: float = 60.0) -> None:
        """Wait until so many backends are ready.

        Raises:
            ProcessFailedError: they are not.
        """
        self.wait_until(lambda: self.ready() >= engines, f"{engines} backends are ready", timeout_s)

    def backends(self) -> list[Backend]:
        """The pool as it is now.

        Raises:
            grpc.RpcError: the proxy does not answer.
        """
        answer = self._stub.ListBackends(ListBackendsRequest(), timeout=_CALL_TIMEOUT_S)
        return list(answer.backends)

    def ready(self) -> int:
        """How many backends get requests; 0 where the proxy does not answer."""
        try:
            return sum(backend.state == 2 for backend in self.backends())
        except grpc.RpcError:
            return 0

    def in_flight(self) -> int:
        """Requests that it has open at all its backends."""
        return sum(backend.in_flight_requests for backend in self.backends())

    def backend(self, address: str) -> Backend:
        """One of them.

        Args:
            address: `host:port`, or a URL.

        Raises:
            LookupError: it is not there.
            grpc.RpcError: the proxy does not answer.
        """
        place = address.rpartition("//")[2]
        found = [one for one in self.backends() if one.address.rpartition("//")[2] == place]
        if not found:
            raise LookupError(f"{address} is no backend")
        return found[0]

    def drain_backend(self, address: str, timeout_s: float) -> None:
        """Send a backend nothing new and wait for what it has."""
        asked = DrainBackendRequest(name=self.backend(address).name)
        asked.timeout.FromNanoseconds(int(timeout_s * 1e9))
        self._stub.DrainBackend(asked, timeout=timeout_s + _CALL_TIMEOUT_S)

    def add_backend(self, address: str) -> None:
        """Take a backend in, or take the drain of one back."""
        self._stub.AddBackend(AddBackendRequest(address=address), timeout=_CALL_TIMEOUT_S)

    @property
    def rss_bytes(self) -> int:
        """Memory that is resident now."""
        return int(psutil.Process(self.pid).memory_info().rss)

    @property
    def sockets(self) -> int:
        """Connections that it has now, listeners included."""
        return len(psutil.Process(self.pid).net_connections("inet"))

    def terminate(self, timeout_s: float = 10.0) -> int:
        """End it; see `ProcessFixture`."""
        self._channel.close()
        return super().terminate(timeout_s)
