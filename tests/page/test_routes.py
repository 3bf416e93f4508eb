"""`/v1/rhizome/pulse` and `/v1/rhizome/cache`: the stack as it is, and nobody's prompts to strangers."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx

from rhizome.engine.v1.engine_service_pb2 import (
    CacheTier,
    CacheTree,
    CacheTreeNamespace,
    CacheTreeNode,
    GetCacheTreeResponse,
)
from rhizome.engine.v1.load_pb2 import Load, RequestTotals
from rhizome.proxy.v1.proxy_service_pb2 import Backend, BackendState
from rhizome_gateway.__main__ import GatewayServer
from rhizome_gateway.app import Gateway
from rhizome_gateway.page.fleet import Fleet
from rhizome_gateway.page.history import History
from rhizome_gateway.page.recent import RecentHits, hit_rate
from rhizome_gateway.settings import GatewaySettings
from rhizome_testing.talking_engine import TalkingEngine
from rhizome_transport.errors import EngineError

KEY = '[[keys]]\nname = "{name}"\nsha256 = "{sha}"\ntenant = "{tenant}"\nadmin = {admin}\n'


class TreeEngine(TalkingEngine):
    """A talking engine that shows a cache; `asked` holds what it was asked for."""

    asked: list[Any]

    async def GetCacheTree(self, request: Any, context: Any) -> GetCacheTreeResponse:  # noqa: N802
        self.asked.append(request)
        nodes = [
            CacheTreeNode(node_id=3, tokens=32, uses=4, idle_uses=7, token_ids=[72, 105]),
            CacheTreeNode(node_id=9, parent_id=3, tokens=16, uses=1, locks=2, pinned=True),
            CacheTreeNode(node_id=120, parent_id=3, tokens=16, uses=2, tier=CacheTier.CACHE_TIER_HOST),
            CacheTreeNode(node_id=8, tokens=16, uses=1, tier=CacheTier.CACHE_TIER_DEVICE_AND_HOST),
        ]
        namespace = CacheTreeNamespace(cache_namespace=request.cache_namespace, nodes=nodes)
        tree = CacheTree(page_size=16, pages_total=100, host_pages_total=50, namespaces=[namespace])
        return GetCacheTreeResponse(trees=[tree])


@asynccontextmanager
async def gateway(target: str, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Fleet]]:
    configured = GatewaySettings(engine=target, model_refresh_s=0.1, **settings)
    app = Gateway(configured)
    server = GatewayServer(app, configured)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server._serve(sockets=[listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            async with asyncio.timeout(20):
                while not server.started or (await http.get("/ready")).status_code != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            try:
                yield http, app.api.state.fleet
            finally:
                server.should_exit = True
                await serving


async def test_a_lone_engine_is_shown_with_its_load_and_its_loss():
    engine = TalkingEngine()
    engine.load = Load(
        instance_id="one", running_requests=2, kv_pages_total=100, kv_pages_in_use=25, kv_pages_cached=50
    )
    trace_url = "http://traces.example/{trace_id}"
    async with AsyncExitStack() as life:
        await life.enter_async_context(engine)
        http, fleet = await life.enter_async_context(gateway(engine.target, trace_url=trace_url))

        async def pulse_with(wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
            async with asyncio.timeout(20):
                while True:
                    await fleet.look()
                    pulse: dict[str, Any] = (await http.get("/v1/rhizome/pulse")).json()
                    if wanted(pulse):
                        return pulse
                    await asyncio.sleep(0.05)

        pulse = await pulse_with(lambda pulse: pulse["engines"][0]["in_flight_requests"] is not None)
        (shown,) = pulse["engines"]
        assert shown["state"] == "ready" and shown["in_flight_requests"] == 2
        assert (shown["kv_utilization_percent"], shown["cached_percent"]) == (25.0, 50.0)
        assert shown["hit_rate"] is None  # nobody can tell
        assert pulse["trace_url"] == trace_url
        assert pulse["admin"] is True
        assert pulse["cache_text"] is False  # over gRPC nobody tells it
        assert shown["served_requests"] is None and "history" not in pulse
        engine.load = Load(instance_id="two")
        await pulse_with(lambda pulse: "restarted" in [event["kind"] for event in pulse["events"]])
        await engine.__aexit__(None, None, None)
        pulse = await pulse_with(lambda pulse: pulse["engines"][0]["state"] == "down")
        assert [event["kind"] for event in pulse["events"]][-1] == "down"
        assert "No engine" in pulse["engines"][0]["reason"]


async def test_an_engine_without_a_tree_is_told_apart_from_an_empty_one():
    async with TalkingEngine() as engine, gateway(engine.target) as (http, _):
        assert (await http.get("/v1/rhizome/cache")).json() == {"trees": None}


async def test_keys_see_their_tenants_part_and_no_text(tmp_path: Path):
    engine = TreeEngine()
    engine.asked = []
    keys = tmp_path / "keys.toml"
    keys.write_text(
        "".join(
            KEY.format(
                name=name,
                sha=hashlib.sha256(f"sk-{name}".encode()).hexdigest(),
                tenant=f"{name}s",
                admin=admin,
            )
            for name, admin in (("user", "false"), ("operator", "true"))
        )
    )
    keys.chmod(0o600)
    user, operator = ({"authorization": f"Bearer sk-{name}"} for name in ("user", "operator"))
    async with engine, gateway(engine.target, keys_file=keys) as (http, _):
        tree = (await http.get("/v1/rhizome/cache", headers=user)).json()["trees"][0]
        assert engine.asked[-1].cache_namespace == "users" and not engine.asked[-1].with_token_ids
        assert tree["host_pages_total"] == 50
        rest = {"idle": 0, "locks": 0, "pinned": False, "tier": "device"}
        held = {**rest, "locks": 2, "pinned": True}
        assert tree["namespaces"][0]["nodes"] == [
            {**rest, "id": 3, "parent": None, "tokens": 32, "uses": 4, "idle": 7},
            {**held, "id": 9, "parent": 3, "tokens": 16, "uses": 1},
            {**rest, "id": 120, "parent": 3, "tokens": 16, "uses": 2, "tier": "host"},
            {**rest, "id": 8, "parent": None, "tokens": 16, "uses": 1, "tier": "both"},
        ]
        assert (await http.get("/v1/rhizome/cache?text=true", headers=user)).status_code == 403
        assert (await http.get("/v1/rhizome/pulse", headers=user)).json()["admin"] is False
        tree = (await http.get("/v1/rhizome/cache?text=true", headers=operator)).json()["trees"][0]
        assert not engine.asked[-1].HasField("cache_namespace") and engine.asked[-1].with_token_ids
        assert [node.get("text") for node in tree["namespaces"][0]["nodes"]] == ["Hi", None, None, None]


class Proxy:
    """What a gateway asks of its proxy; unreachable where `backends_now` is None."""

    def __init__(self) -> None:
        self.backends_now: list[Backend] | None = []

    async def backends(self) -> list[Backend]:
        if self.backends_now is None:
            raise EngineError(grpc.StatusCode.UNAVAILABLE, "nobody answers")
        return self.backends_now


class Nothing:
    """No lone engine, and no figures of one."""

    ready = False

    async def load(self) -> None:
        return None


def backend(hits: int, misses: int, *, instance: str = "one", total: int = 0) -> Backend:
    totals = RequestTotals(completed=3, cache_hit_tokens=hits, cache_miss_tokens=misses)
    load = Load(instance_id=instance, totals=totals)
    ready = BackendState.BACKEND_STATE_READY
    return Backend(name="engine-0", state=ready, load=load, total_requests=total)


async def test_a_proxy_that_is_gone_is_an_event_and_so_is_its_return():
    proxy: Any = Proxy()
    nothing: Any = Nothing()
    fleet = Fleet(proxy, nothing, nothing)
    proxy.backends_now = [backend(10, 10)]
    await fleet.look()
    proxy.backends_now = None
    await fleet.look()
    assert fleet.events() == []  # late once is not gone
    await fleet.look()
    await fleet.look()
    told = [(event["kind"], event["reason"]) for event in fleet.events()]
    assert told == [("unreachable", "nobody answers")]
    assert (await fleet.engines())[0]["state"] == "unknown"
    proxy.backends_now = [backend(10, 10)]
    await fleet.look()
    assert [event["kind"] for event in fleet.events()] == ["unreachable", "ready"]


async def test_served_are_generations_and_hits_are_of_late():
    proxy: Any = Proxy()
    nothing: Any = Nothing()
    fleet = Fleet(proxy, nothing, nothing)
    proxy.backends_now = [backend(900, 100, total=12)]
    await fleet.look()
    (shown,) = await fleet.engines()
    assert shown["served_requests"] == 3 and shown["total_requests"] == 12  # polls are calls as well
    assert shown["hit_rate"] is None  # the 90 % are of another day
    proxy.backends_now = [backend(910, 130)]
    await fleet.look()
    assert (await fleet.engines())[0]["hit_rate"] == 0.25


def test_hits_are_of_the_last_minute_and_of_one_life_of_the_engine():
    recent = RecentHits()
    for now, (hits, misses, instance) in enumerate(
        [(50, 50, "one"), (80, 60, "one"), (500, 500, "two"), (500, 510, "two")]
    ):
        recent.add(float(now), backend(hits, misses, instance=instance).load)
    recent.add(4.0, Load())  # nobody answered
    assert recent.tokens == (30, 20)
    recent.add(62.0, backend(500, 510, instance="two").load)
    assert hit_rate([recent]) == 0.0  # the 30 are too old
    recent.add(90.0, backend(500, 510, instance="two").load)
    assert hit_rate([recent]) is None


def test_ten_minutes_are_remembered_and_a_p95_of_few_is_not():
    history = History()
    figures: dict[str, Any] = {"engine": None, "cache": None, "queue": {"waiting_requests": 4}}
    for count in (19, 20):
        quantiles = {"count": count, "p50": 5.0, "p95": 9.0}
        history.add({**figures, "gateway": {"time_to_first_token_ms": quantiles}}, 0.5)
    told = history.since(0)
    assert (told["first_token_p50_ms"], told["first_token_p95_ms"]) == ([5.0, 5.0], [None, 9.0])
    assert (told["waiting"], told["running"], told["hit_percent"]) == ([4, 4], [None, None], [50.0, 50.0])
    assert history.since(told["at"][-1] or 0)["at"] == []
    for _ in range(400):
        history.add({**figures, "gateway": {}}, None)
    assert len(history.since(0)["at"]) == 300


async def test_figures_of_before_are_there_for_a_page_that_begins():
    async with TalkingEngine() as engine, gateway(engine.target) as (http, fleet):
        await fleet.sample()
        told = (await http.get("/v1/rhizome/pulse?since=0")).json()["history"]
        assert len(told["at"]) >= 1 and set(map(len, told.values())) == {len(told["at"])}
        later = (await http.get(f"/v1/rhizome/pulse?since={told['at'][-1]}")).json()["history"]
        assert len(later["at"]) <= 1
        assert (await http.get("/v1/rhizome/pulse?since=x")).status_code in (400, 422)
