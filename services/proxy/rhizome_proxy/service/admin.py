"""All of ProxyService, for the listener of operators: whoever can add an engine can read prompts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc

from rhizome.proxy.v1 import proxy_service_pb2 as proxy_pb2
from rhizome_backends.spec import parse_specs
from rhizome_proxy.pool.backend import Backend, State
from rhizome_proxy.service.proxy_service import Context, ProxyServicer, describe
from rhizome_transport.errors import EngineError


class AdminServicer(ProxyServicer):
    """Shows and changes the pool. What it changes lasts until the proxy is started anew."""

    async def AddBackend(  # noqa: N802 - named by the contract
        self, request: proxy_pb2.AddBackendRequest, context: Context
    ) -> proxy_pb2.AddBackendResponse:
        """Let an engine in, or take the drain of one back."""
        try:
            (spec,) = parse_specs(request.address)
        except ValueError:
            text = "address must be one host:port or http://host:port, IPv6 in brackets"
            raise _invalid(text, "address") from None
        if spec.resolve:
            raise _invalid("address must be one host:port; names go into --backends", "address")
        spec = replace(spec, name=request.name or spec.name, kind=request.kind or spec.kind)
        backend = self._registry.get(spec.name)
        if backend is None:
            try:
                backend = self._registry.add(spec)
            except ValueError as error:
                raise _invalid(str(error), "kind") from None
        elif backend.spec.address == spec.address and backend.state is State.DRAINING:
            self._registry.restore(backend.name)
        else:
            text = f"a backend named {backend.name!r} exists; remove it first, or give another name"
            raise EngineError(grpc.StatusCode.ALREADY_EXISTS, text, param="name")
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
