"""ProxyService: the pool, for people and tools."""

from __future__ import annotations

from typing import Any

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from rhizome.proxy.v1 import proxy_service_pb2 as proxy_pb2
from rhizome.proxy.v1 import proxy_service_pb2_grpc as proxy_grpc
from rhizome_proxy.pool.backend import Backend
from rhizome_proxy.pool.registry import Registry
from rhizome_transport.servicer import declined

PROXY_SERVICE = "rhizome.proxy.v1.ProxyService"
Context = grpc.aio.ServicerContext[Any, Any]


def _declined(method: str) -> Any:
    return declined(f"{PROXY_SERVICE}/{method}", "operators call it at --admin-port")


class ProxyServicer(proxy_grpc.ProxyServiceServicer):
    """Shows the pool, on the listener that is everybody's; changing it is `AdminServicer`'s, on its own."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def ListBackends(  # noqa: N802 - named by the contract
        self, request: proxy_pb2.ListBackendsRequest, context: Context
    ) -> proxy_pb2.ListBackendsResponse:
        """List the pool, sorted by name."""
        return proxy_pb2.ListBackendsResponse(backends=[describe(backend) for backend in self._registry])

    AddBackend: Any = _declined("AddBackend")
    RemoveBackend: Any = _declined("RemoveBackend")
    DrainBackend: Any = _declined("DrainBackend")
    WatchBackends: Any = _declined("WatchBackends")


def describe(backend: Backend) -> proxy_pb2.Backend:
    """A backend as the contract shows it."""
    message = proxy_pb2.Backend(
        name=backend.name,
        address=backend.spec.address,
        kind=backend.server.kind,
        state=backend.state.value,
        reason=backend.reason,
        models=backend.models,
        in_flight_requests=backend.in_flight,
        total_requests=backend.total,
        failed_requests=backend.failed,
        resumed_requests=backend.resumed,
    )
    if backend.report is not None:
        message.load.CopyFrom(backend.report.load)
    if backend.last_seen is not None:
        seen = Timestamp()
        seen.FromNanoseconds(int(backend.last_seen * 1e9))
        message.last_seen.CopyFrom(seen)
    return message
