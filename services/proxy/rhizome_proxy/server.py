"""The proxy put together: pool, policy, services, gRPC server."""

from __future__ import annotations

import asyncio
import logging
import uuid

from rhizome.proxy.v1.proxy_service_pb2_grpc import add_ProxyServiceServicer_to_server
from rhizome_backends.open_server import open_server
from rhizome_backends.spec import parse_specs
from rhizome_proxy.http.face import HttpFace
from rhizome_proxy.metrics import ProxyCollector
from rhizome_proxy.pool.backend import Backend
from rhizome_proxy.pool.discovery import Discovery
from rhizome_proxy.pool.health import HealthPoller
from rhizome_proxy.pool.registry import Registry
from rhizome_proxy.router import Router
from rhizome_proxy.service.admin import AdminServicer
from rhizome_proxy.service.connect import ConnectService
from rhizome_proxy.service.fleet import FleetService
from rhizome_proxy.service.proxy_service import PROXY_SERVICE, ProxyServicer
from rhizome_proxy.service.relay import RelayService
from rhizome_proxy.settings import ProxySettings
from rhizome_relay.compiled import COMPILED
from rhizome_relay.pool import Pools
from rhizome_routing.admission import Admissions, Fleet
from rhizome_routing.policies import POLICIES
from rhizome_routing.policies.groups import PriorityGroups
from rhizome_routing.retry_budget import RetryBudget
from rhizome_telemetry.metrics import MetricsListener, OnLoop
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.grpc_server import GrpcServer
from rhizome_transport.tokens import is_loopback

_log = logging.getLogger(__name__)


class ProxyServer:
    """A running proxy. Must be made inside the running loop.

    Attributes:
        port: where it listens for gRPC, once started.
        http_port: where it listens for HTTP, once started; 0 where it does not.
        registry: the pool.
        router: chooses engines, and counts what became of requests.
    """

    def __init__(self, settings: ProxySettings) -> None:
        self.port = self.http_port = 0
        self._settings = settings
        self._draining = False
        poller = HealthPoller(settings.poll_interval_s, settings.poll_timeout_s, settings.stall_timeout_s)
        engine_tls, engine_tokens = settings.engine_tls(), settings.engine_tokens()
        tls, tokens, engine_curve = settings.tls(), settings.tokens(), settings.engine_curve()
        policy = PriorityGroups(POLICIES[settings.policy]())

        async def watch(backend: Backend) -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(poller.watch(backend))
                if policy.index is not None:
                    tasks.create_task(backend.server.follow(policy.index, backend.name))

        relay_settings = settings.relay_settings()
        pools = Pools(relay_settings)
        fleet = Fleet(lambda group: self.router.taking(group))
        self.registry = Registry(
            lambda spec: open_server(
                spec, pools=pools, tls=engine_tls, tokens=engine_tokens, curve=engine_curve
            ),
            watch,
            settings.backend_rules(),
            fleet,
        )
        queue = settings.admission()
        admissions = Admissions(queue, fleet) if queue is not None else None
        self.registry.on_change(fleet.news)
        self.registry.on_change(self._forget_others)
        self._discovery = Discovery(
            parse_specs(settings.backends),
            self.registry,
            settings.dns_interval_s,
            file=settings.backends_file,
            drain_timeout_s=settings.engine_drain_timeout_s,
        )
        instance_id = uuid.uuid4().hex
        self.router = router = Router(
            self.registry,
            policy,
            budget=RetryBudget(settings.retry_share, settings.min_retries_per_s),
            max_resumes=settings.max_resumes,
            resume_wait_s=settings.resume_wait_s,
            timeout_s=settings.backend_timeout_s,
            admissions=admissions,
        )
        self._connect = ConnectService(router, instance_id=instance_id, window_frames=settings.window_frames)
        self._server = GrpcServer(
            _join(settings.host, settings.port),
            service_names=(ENGINE_SERVICE, PROXY_SERVICE),
            open_requests=lambda: self._connect.open_requests,
            tls=tls,
            tokens=tokens,
        )
        handlers = {"Connect": self._connect.handler()}
        handlers |= RelayService(router).handlers()
        handlers |= FleetService(self.registry, instance_id, self._connect.abort).handlers()
        self._server.add_handlers(ENGINE_SERVICE, handlers)
        self._server.add(add_ProxyServiceServicer_to_server, ProxyServicer(self.registry))
        self._http = HttpFace(router, relay_settings, pools)
        self._admin: GrpcServer | None = None
        if settings.admin_port:
            self._admin = GrpcServer(
                _join(settings.admin_host, settings.admin_port),
                service_names=(PROXY_SERVICE,),
                tls=None if is_loopback(settings.admin_host) else tls,
                tokens=tokens,
            )
            self._admin.add(add_ProxyServiceServicer_to_server, AdminServicer(self.registry))
        self._refreshing: asyncio.Task[None] | None = None
        self._metrics: MetricsListener | None = None

    async def start(self) -> int:
        """Check the engines once, then listen.

        Returns:
            The port.

        Raises:
            OSError: the address is taken or not ours.
        """
        self.registry.on_change(self._announce)
        await self._discovery.start()
        await self.registry.wait_checked(self._settings.poll_timeout_s)
        self._refreshing = asyncio.create_task(self._discovery.run(), name="discovery")
        self._server.set_serving(PROXY_SERVICE, True)
        self.port = await self._server.start()
        if self._settings.http_port is not None:
            self.http_port = await self._http.start(self._settings.http_host, self._settings.http_port)
            _log.info("listening on port %d for HTTP", self.http_port)
        if self._admin is not None:
            self._admin.set_serving(PROXY_SERVICE, True)
            _log.info("listening on port %d for operators", await self._admin.start())
        if self._settings.metrics_port:
            collector = OnLoop(ProxyCollector(self.router), asyncio.get_running_loop())
            host, port = self._settings.metrics_host, self._settings.metrics_port
            self._metrics = MetricsListener(host, port, collector)
            _log.info("listening on port %d for scrapes", self._metrics.port)
        _log.info(
            "listening on port %d for gRPC%s; %d of %d backends are ready",
            self.port,
            ", compiled" if COMPILED else "",
            sum(backend.ready for backend in self.registry),
            len(self.registry),
        )
        return self.port

    async def stop(self, grace_s: float | None = None) -> bool:
        """Say so, after a while refuse what is new, finish what is open, and close.

        Args:
            grace_s: after this time open requests are cut off, 0 for at once; the setting where absent.

        Returns:
            Whether everything finished in time.
        """
        self._draining = True
        self._announce()
        self._http.drain()
        await asyncio.sleep(0.0 if grace_s == 0.0 else self._settings.drain_delay_s)
        self._connect.drain()
        grace_s = self._settings.drain_timeout_s if grace_s is None else grace_s
        finished = all(await asyncio.gather(self._server.drain_and_stop(grace_s), self._http.stop(grace_s)))
        if self._admin is not None:
            await self._admin.drain_and_stop(0.0)
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        await self.registry.close()
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
        return finished

    def serving(self) -> bool:
        """Whether some backend takes requests, and the proxy does."""
        return bool(self.registry.ready()) and not self._draining

    def status(self) -> str:
        """One line for people."""
        ready = sum(backend.ready for backend in self.registry)
        return f"{ready} of {len(self.registry)} backends are ready"

    def _forget_others(self) -> None:
        """Backends that left the pool leave no trace."""
        names = {backend.name for backend in self.registry.members}
        for one in (self.router.policy, self.router.http, self.router.grpc):
            one.retain(names)

    def _announce(self) -> None:
        """The proxy serves what its engines serve; that it doubts them is not its callers' business."""
        self._server.set_serving(ENGINE_SERVICE, self.serving())


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
