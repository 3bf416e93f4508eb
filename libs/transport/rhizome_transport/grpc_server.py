"""The gRPC server that every service starts: health, reflection, errors, drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc

from rhizome_transport.channel import SERVER_OPTIONS
from rhizome_transport.health import HealthServicer
from rhizome_transport.reflection import add_reflection
from rhizome_transport.rpc_guard import RpcGuard
from rhizome_transport.servicer import EngineServicerBase, abort_with
from rhizome_transport.tls import ServerTls
from rhizome_transport.token_auth import TokenGuard
from rhizome_transport.tokens import Tokens

__all__ = ["ENDLESS_METHODS", "EngineServicerBase", "GrpcServer", "abort_with"]

ENDLESS_METHODS = frozenset({"Connect", "WatchLoad", "WatchKvEvents", "WatchBackends"})
_STREAM_END_S = 0.25
_POLL_S = 0.05


class GrpcServer:
    """A grpc.aio server with what Rhizome's services have in common. Must be made inside the running loop.

    Health knows `""` (serving from the start) and each of `service_names` (not serving until `set_serving`).
    Servicers may raise `EngineError`; any other exception becomes INTERNAL and a log entry.

    Args:
        address: `host:port`, port 0 picks a free one; or `unix:/path`.
        service_names: full names, for health and reflection.
        open_requests: how many requests are open inside endless streams such as `Connect`; `drain_and_stop`
            waits for these too.
        endless_methods: RPCs that a drain does not wait for.
        tls: absent for plaintext.
        tokens: callers show one of them; absent for all callers. Health stays open.
    """

    def __init__(
        self,
        address: str,
        *,
        service_names: tuple[str, ...],
        open_requests: Callable[[], int] = lambda: 0,
        endless_methods: frozenset[str] = ENDLESS_METHODS,
        tls: ServerTls | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        self._address = address
        self._tls = tls
        self._open_requests = open_requests
        self._guard = RpcGuard(endless_methods)
        guards = (self._guard,) if tokens is None else (TokenGuard(tokens), self._guard)
        self._server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=guards)
        self._health = HealthServicer(service_names)
        self._service_names = service_names
        self._overrides: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}

    @property
    def in_flight(self) -> int:
        """Requests under way, those inside endless streams included."""
        return self._guard.in_flight + self._open_requests()

    @property
    def draining(self) -> bool:
        """Whether `drain_and_stop` began; servicers of endless streams must refuse new requests then."""
        return self._guard.draining

    def add(self, adder: Callable[[Any, grpc.aio.Server], None], servicer: object) -> None:
        """Register a servicer, as in `server.add(add_EngineServiceServicer_to_server, servicer)`."""
        adder(servicer, self._server)

    def add_handlers(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        """Register single methods, for relays that want bytes instead of messages.

        They replace the methods of a servicer given to `add`, before or after.
        """
        self._overrides.setdefault(service, {}).update(handlers)

    def set_serving(self, service: str, serving: bool) -> None:
        """Say over grpc.health.v1 whether `service` takes requests."""
        self._health.set_serving(service, serving)

    def is_serving(self, service: str) -> bool:
        """What health says."""
        return self._health.is_serving(service)

    async def start(self) -> int:
        """Listen.

        Returns:
            The port, also where the address said 0; 1 for a unix socket.

        Raises:
            OSError: the address is taken or not ours.
        """
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        add_reflection(self._server, (*self._service_names, health.SERVICE_NAME))
        for service, handlers in self._overrides.items():
            self._server.add_registered_method_handlers(service, handlers)
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(self._address)
            else:
                port = self._server.add_secure_port(self._address, self._tls.credentials())
        except RuntimeError as error:
            raise OSError(
                f"cannot listen on {self._address}: the address is in use or not of this machine; "
                "stop the other server or choose another port"
            ) from error
        await self._server.start()
        return port

    async def drain_and_stop(self, grace_s: float) -> bool:
        """Finish what is open, refuse what is new, and stop.

        Health turns to NOT_SERVING first, so that proxies and Kubernetes look elsewhere. Endless streams
        stay up while their requests run and are ended afterwards.

        Args:
            grace_s: after this time open requests are cut off.

        Returns:
            Whether everything finished in time.
        """
        self._health.drain()
        self._guard.draining = True
        deadline = asyncio.get_running_loop().time() + grace_s
        while self.in_flight and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - a callable
            await asyncio.sleep(_POLL_S)
        finished = self.in_flight == 0
        await self._server.stop(_STREAM_END_S if finished else 0.0)
        return finished

    async def wait_closed(self) -> None:
        """Return when the server stopped."""
        await self._server.wait_for_termination()
