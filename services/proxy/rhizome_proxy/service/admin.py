"""All of ProxyService, for the listener of operators: whoever can add an engine can read prompts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from rhizome.proxy.v1 import proxy_service_pb2 as proxy_pb2
from rhizome_proxy.pool.backend import Backend, State
from rhizome_proxy.pool.discovery import parse_targets
from rhizome_proxy.service.proxy_service import Context, ProxyServicer, describe
from rhizome_transport.errors import EngineError

_KINDS = ("", "rhizome")


class AdminServicer(ProxyServicer):
    """Shows and changes the pool. What it changes lasts until the proxy is started anew."""

    async def AddBackend(  # noqa: N802 - named by the contract
        self, request: proxy_pb2.AddBackendRequest, context: Context
    ) -> proxy_pb2.AddBackendResponse:
        """Let an engine in, or take the drain of one back."""
        if request.kind not in _KINDS:
            raise _invalid(f"kind {request.kind!r} is unknown; use rhizome, or leave it out", "kind")
        try:
            (target,) = parse_targets(request.address)
        except ValueError:
            raise _invalid("address must be one host:port, IPv6 in brackets", "address") from None
        if target.resolve:
            raise _invalid("address must be one host:port; names go into --backends", "address")
        backend = self._registry.get(request.name or target.address)
        if backend is not None and backend.address == target.address and backend.state is State.DRAINING:
            self._registry.restore(backend.name)
        elif backend is not None:
            text = f"a backend named {backend.name!r} exists; remove it first, or give another name"
            raise EngineError(grpc.StatusCode.ALREADY_EXISTS, text, param="name")
        else:
            backend = self._registry.add(target.address, request.name)
        return proxy_pb2.AddBackendResponse(backend=describe(backend))

    async def RemoveBackend(  # noqa: N802
        self, request: proxy_pb2.RemoveBackendRequest, context: Context
    ) -> proxy_pb2.RemoveBackendResponse:
        """Forget an engine; what is open there goes on elsewhere."""
        await self._registry.remove(self._find(request.name).name)
        return proxy_pb2.RemoveBackendResponse()

    async def DrainBackend(  # noqa: N802
        self, request: proxy_pb2.DrainBackendRequest, context: Context
    ) -> proxy_pb2.DrainBackendResponse:
        """Send it nothing new, and wait for what is open there."""
        backend = self._find(request.name)
        timeout_s = request.timeout.ToNanoseconds() / 1e9 if request.HasField("timeout") else None
        left = await self._registry.drain(backend, timeout_s)
        return proxy_pb2.DrainBackendResponse(in_flight_requests=left)

    async def WatchBackends(  # noqa: N802
        self, request: proxy_pb2.WatchBackendsRequest, context: Context
    ) -> AsyncIterator[proxy_pb2.WatchBackendsResponse]:
        """The pool now, and whenever a backend came, went or changed its state."""
        changed = asyncio.Event()
        self._registry.on_change(changed.set)
        try:
            while True:
                changed.clear()
                yield proxy_pb2.WatchBackendsResponse(backends=[describe(one) for one in self._registry])
                await changed.wait()
        finally:
            self._registry.off_change(changed.set)

    def _find(self, name: str) -> Backend:
        backend = self._registry.get(name)
        if backend is None:
            text = "no backend has this name; ListBackends shows all of them"
            raise EngineError(grpc.StatusCode.NOT_FOUND, text, param="name")
        return backend


def _invalid(message: str, param: str) -> EngineError:
    return EngineError(grpc.StatusCode.INVALID_ARGUMENT, message, param=param)
