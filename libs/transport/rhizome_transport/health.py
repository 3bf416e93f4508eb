"""grpc.health.v1: is the process alive, is the model served.

The servicer of grpcio-health-checking forgets the other watchers of a service when one of them leaves, so
this is a version of our own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

Status = health_pb2.HealthCheckResponse
Context = grpc.aio.ServicerContext[Any, Any]
LIVENESS = ""


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Answers for `""` (the process lives) and for each service by name (it takes requests).

    Args:
        services: names that exist; they are not serving until `set_serving` says so.
    """

    def __init__(self, services: tuple[str, ...]) -> None:
        self._serving = {LIVENESS: True, **dict.fromkeys(services, False)}
        self._changed = asyncio.Event()
        self._draining = False

    def is_serving(self, service: str) -> bool:
        """Whether `service` takes requests."""
        return self._serving.get(service, False)

    def set_serving(self, service: str, serving: bool) -> None:
        """Announce a change; ignored once draining began."""
        if self._draining or self._serving.get(service) == serving:
            return
        self._serving[service] = serving
        self._announce()

    def drain(self) -> None:
        """No service serves any more, for good; the process still lives."""
        self._draining = True
        for service in self._serving:
            self._serving[service] = service == LIVENESS
        self._announce()

    async def Check(  # noqa: N802 - named by the contract
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Answer once."""
        if request.service not in self._serving:
            known = ", ".join(repr(name) for name in self._serving)
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here; there are {known}"
            )
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(  # noqa: N802 - named by the contract
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Answer now and after every change."""
        last: int | None = None
        while True:
            changed, status = self._changed, self._status(request.service)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            else:
                await changed.wait()

    def _status(self, service: str) -> Any:
        serving = self._serving.get(service)
        if serving is None:
            return Status.SERVICE_UNKNOWN
        return Status.SERVING if serving else Status.NOT_SERVING

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
