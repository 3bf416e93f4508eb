"""Whether the services of a stack serve, and how busy they are: asked as any client could ask."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

import grpc

from rhizome.engine.v1.engine_service_pb2 import GetLoadRequest
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.load_pb2 import Load
from rhizome.proxy.v1.proxy_service_pb2 import BACKEND_STATE_READY, ListBackendsRequest
from rhizome.proxy.v1.proxy_service_pb2_grpc import ProxyServiceStub
from rhizome_launcher.plan import ServicePlan
from rhizome_transport.channel import CLIENT_OPTIONS, ENGINE_SERVICE
from rhizome_transport.probe import NOT_SERVING, SERVING, probe

_READY_PATHS = {"gateway": "/ready", "router": "/health"}


@dataclass(frozen=True, slots=True)
class Health:
    """What a service says of itself.

    Attributes:
        serving: whether it takes requests.
        text: the same for people: `serving`, `not serving`, `no answer`.
        load: of an engine that serves.
    """

    serving: bool
    text: str
    load: Load | None = None


async def check(service: ServicePlan, timeout_s: float = 1.0) -> Health:
    """Ask one service once."""
    if service.kind in _READY_PATHS:
        url = service.address + _READY_PATHS[service.kind]
        return await asyncio.to_thread(_check_http, url, timeout_s)
    return await asyncio.to_thread(_check_grpc, service, timeout_s)


async def all_serving(services: Iterable[ServicePlan], timeout_s: float = 1.0) -> bool:
    """Whether every service takes requests; the first that does not spares the others the question."""
    for service in services:
        if not (await check(service, timeout_s)).serving:
            return False
    return True


def _check_http(url: str, timeout_s: float) -> Health:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("GET", parts.path)
        serving = connection.getresponse().status == http.HTTPStatus.OK
        return Health(serving, "serving" if serving else "not serving")
    except (OSError, http.client.HTTPException):
        return Health(False, "no answer")
    finally:
        connection.close()


def _check_grpc(service: ServicePlan, timeout_s: float) -> Health:
    code, _ = probe(service.address, ENGINE_SERVICE, timeout_s)
    if code != SERVING:
        return Health(False, "not serving" if code == NOT_SERVING else "no answer")
    with grpc.insecure_channel(service.address, options=CLIENT_OPTIONS) as channel:
        try:
            if service.kind == "engine":
                answer = EngineServiceStub(channel).GetLoad(GetLoadRequest(), timeout=timeout_s)
                return Health(True, "serving", answer.load)
            backends = (
                ProxyServiceStub(channel).ListBackends(ListBackendsRequest(), timeout=timeout_s).backends
            )
        except grpc.RpcError:  # an engine without a load serves; a proxy without engines may not
            serving = service.kind == "engine"
            return Health(serving, "serving" if serving else "no answer")
    ready = sum(backend.state == BACKEND_STATE_READY for backend in backends)
    return Health(ready == len(backends), f"serving with {ready} of {len(backends)} engines")
