"""`/v1/rhizome/pulse` and `/v1/rhizome/cache`: the stack as it is, and nobody's prompts to strangers."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from rhizome.engine.v1.engine_service_pb2 import (
    CacheTree,
    CacheTreeNamespace,
    CacheTreeNode,
    GetCacheTreeResponse,
)
from rhizome.engine.v1.load_pb2 import Load
from rhizome_gateway.__main__ import GatewayServer
from rhizome_gateway.app import Gateway
from rhizome_gateway.page.fleet import Fleet
from rhizome_gateway.settings import GatewaySettings
from rhizome_testing.talking_engine import TalkingEngine

KEY = '[[keys]]\nname = "{name}"\nsha256 = "{sha}"\ntenant = "{tenant}"\nadmin = {admin}\n'


class TreeEngine(TalkingEngine):
    """A talking engine that shows a cache; `asked` holds what it was asked for."""

    asked: list[Any]

    async def GetCacheTree(self, request: Any, context: Any) -> GetCacheTreeResponse:  # noqa: N802
        self.asked.append(request)
        nodes = [
            CacheTreeNode(node_id=3, tokens=32, uses=4, idle_uses=7, token_ids=[72, 105]),
            CacheTreeNode(node_id=9, parent_id=3, tokens=16, uses=1, locks=2, pinned=True),
        ]
        namespace = CacheTreeNamespace(cache_namespace=request.cache_namespace, nodes=nodes)
        tree = CacheTree(page_size=16, pages_total=100, namespaces=[namespace])
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
        assert tree["namespaces"][0]["nodes"] == [
            {"id": 3, "parent": None, "tokens": 32, "uses": 4, "idle": 7, "locks": 0, "pinned": False},
            {"id": 9, "parent": 3, "tokens": 16, "uses": 1, "idle": 0, "locks": 2, "pinned": True},
        ]
        assert (await http.get("/v1/rhizome/cache?text=true", headers=user)).status_code == 403
        assert (await http.get("/v1/rhizome/pulse", headers=user)).json()["admin"] is False
        tree = (await http.get("/v1/rhizome/cache?text=true", headers=operator)).json()["trees"][0]
        assert not engine.asked[-1].HasField("cache_namespace") and engine.asked[-1].with_token_ids
        assert [node.get("text") for node in tree["namespaces"][0]["nodes"]] == ["Hi", None]
