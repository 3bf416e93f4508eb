"""The HTTP face put together."""

from __future__ import annotations

from rhizome_proxy.http.endpoints import Endpoints
from rhizome_proxy.http.picker import PoolPicker
from rhizome_proxy.metrics import ProxyCollector
from rhizome_proxy.router import Router
from rhizome_relay.pool import Pools
from rhizome_relay.relay import Relay
from rhizome_relay.server import HttpServer
from rhizome_relay.settings import RelaySettings
from rhizome_routing.retry_budget import RetryBudget


class RelayBudget:
    """The budget for retries as the relay asks for it; both faces share it."""

    def __init__(self, router: Router, budget: RetryBudget) -> None:
        self.on_request = budget.request
        self._router = router
        self._budget = budget

    def take(self) -> bool:
        """Whether one retry more is allowed."""
        allowed = self._budget.take()
        self._router.counts.retries_denied += not allowed
        return allowed


class HttpFace:
    """Serves HTTP with the pool's HTTP backends.

    Args:
        router: chooses backends.
        settings: limits and habits of the relay.
        pools: connections to backends, which health checks use as well.
    """

    def __init__(self, router: Router, settings: RelaySettings, pools: Pools) -> None:
        collector = ProxyCollector(router)
        endpoints = Endpoints(router.registry, collector, lambda: self._relay.draining)
        budget = RelayBudget(router, router.budget)
        self._relay = Relay(PoolPicker(router), budget, settings, endpoints.handler, pools)
        self._server = HttpServer(self._relay)

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the address is taken or not ours.
        """
        return await self._server.start(host, port)

    def drain(self) -> None:
        """Say that nothing new is wanted; what comes all the same is served."""
        self._relay.draining = True

    async def stop(self, grace_s: float) -> bool:
        """Accept nobody, finish what is under way for at most `grace_s`, close; whether all finished."""
        return await self._server.stop(grace_s)
