"""What the HTTP face answers itself."""

from __future__ import annotations

import asyncio
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.proxy.http.conftest import CHAT, CHATS, Bench, url
from tests.relay.conftest import eventually


async def figures(face) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = list(text_string_to_metric_families(await face.metrics()))
    assert len({family.name for family in families}) == len(families)
    found = {}
    for family in families:
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, "each series once"
            found[key] = sample.value
    return found


def figure(found, name: str, **labels: str) -> float:
    return sum(
        value for (one, its), value in found.items() if one == name and labels.items() <= dict(its).items()
    )


async def test_health_has_the_shape_that_deployments_read(bench: Bench):
    server = await bench.simulate("llamacpp")
    face = await bench.proxy(server)
    await eventually(lambda: face.backend(server).report is not None)
    before = time.time()
    answer = await face.client.get("/health")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    health = answer.json()
    assert list(health) == ["status", "available_backends", "total_backends", "timestamp", "details"]
    assert health["status"] == "ok"
    assert health["available_backends"] == [url(server)]
    assert health["total_backends"] == 1
    assert before <= health["timestamp"] <= time.time()
    (detail,) = health["details"]
    metrics = detail.pop("metrics")
    assert detail.pop("backend") == url(server) and detail.pop("ready") is True
    assert detail == {
        "name": url(server), "kind": "llamacpp", "state": "ready", "reason": None, "busy": False,
        "models": ["simulated"], "in_flight": 0,
    }  # fmt: skip
    assert before - 10 < metrics.pop("timestamp") <= time.time()
    assert metrics == {"requests_processing": 0.0, "requests_deferred": 0.0, "ready": True}


async def test_unknown_load_is_not_said_to_be_zero(bench: Bench):
    server = await bench.simulate("ollama")
    face = await bench.proxy(server)
    (detail,) = (await face.client.get("/health")).json()["details"]
    assert detail["metrics"]["requests_processing"] is None


async def test_health_falls_with_the_backends(bench: Bench):
    one, other = await bench.simulate(), await bench.simulate()
    face = await bench.proxy(one, other)
    other.faults.unhealthy = True
    await face.ready(1)
    answer = await face.client.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert answer.json()["available_backends"] == [url(one)]
    one.faults.unhealthy = True
    await face.ready(0)
    answer = await face.client.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    assert answer.json()["available_backends"] == []
    down = answer.json()["details"][0]
    assert down["state"] == "down" and down["reason"] and down["metrics"]["ready"] is False
    assert (await face.client.get("/live")).status_code == 200
    one.faults.unhealthy = False
    await face.ready(1)
    assert (await face.client.get("/health")).status_code == 200


async def test_health_of_this_face_needs_a_backend_of_this_face(bench: Bench, cluster):
    engine = await cluster.engine()
    server = await bench.simulate()
    face = await bench.proxy(server, backends=engine.address)
    server.faults.unhealthy = True
    await face.ready(1)
    assert (await face.client.get("/health")).status_code == 503
    assert (await face.post(CHAT, CHATS)).status_code == 503


async def test_a_draining_proxy_says_so_first(bench: Bench):
    face = await bench.proxy(await bench.simulate())
    face.proxy._http.drain()
    answer = await face.client.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "draining")
    assert answer.headers["connection"] == "close"
    assert (await face.post(CHAT, {**CHATS, "max_tokens": 2})).status_code == 200


async def test_the_front_page_leads_on(bench: Bench):
    face = await bench.proxy(await bench.simulate())
    welcome = (await face.client.get("/")).json()
    for page in (welcome["docs"], welcome["health"], welcome["models"], "/redoc"):
        assert (await face.client.get(page)).status_code == 200
    docs = await face.client.get("/docs")
    assert docs.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in docs.headers["content-security-policy"]
    for route in ("/health", "/metrics", "/v1/models", "/live"):
        assert f"<code>{route}</code>" in docs.text
    assert "src=" not in docs.text and "href=" not in docs.text, "nothing is loaded from elsewhere"


@pytest.mark.parametrize("path", ["/", "/health", "/docs", "/v1/models", "/metrics"])
async def test_pages_are_for_reading(bench: Bench, path):
    face = await bench.proxy(await bench.simulate())
    head = await face.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    refused = await face.client.post(path, json={})
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
    assert refused.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/slots", "/simulate", "/admin", "/v2/x", "/health/x", "/v1", "/metrics2"])
async def test_what_is_for_operators_is_not_reached(bench: Bench, path):
    server = await bench.simulate()
    face = await bench.proxy(server)
    answer = await face.client.post(path, json={"crash": True})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "unknown_path"


async def test_models_of_all_backends_together(bench: Bench):
    small = await bench.simulate("vllm", model="small/model")
    large = await bench.simulate("llamacpp", model="large")
    twin = await bench.simulate("tgi", model="large")
    listed = f"{url(small)}?alias=cheap:small/model&alias=wrong:absent&alias=*:small/model"
    face = await bench.proxy(large, twin, backends=listed)
    models = (await face.client.get("/v1/models")).json()
    assert models["object"] == "list"
    assert [model["id"] for model in models["data"]] == ["cheap", "large", "small/model"]
    owners = [model["owned_by"] for model in models["data"]]
    assert owners[0] == owners[2] == "vllm" and owners[1] in ("llamacpp", "tgi")
    assert {model["object"] for model in models["data"]} == {"model"}
    for model in models["data"]:
        assert (await face.client.get(f"/v1/models/{model['id']}")).json() == model
    absent = await face.client.get("/v1/models/absent")
    assert absent.status_code == 404 and absent.json()["error"]["code"] == "model_not_found"
    large.faults.unhealthy = twin.faults.unhealthy = True
    await face.ready(1)
    models = (await face.client.get("/v1/models")).json()
    assert [model["id"] for model in models["data"]] == ["cheap", "small/model"]


async def test_figures_move(bench: Bench):
    server = await bench.simulate()
    face = await bench.proxy(server)
    duration = "gen_ai_server_request_duration_seconds_count"
    first = "gen_ai_server_time_to_first_token_seconds_count"
    await figures(face)
    for model in ("simulated", "invented-1", "invented-2"):
        await face.post(CHAT, {**CHATS, "model": model, "max_tokens": 2})
    found = await figures(face)
    labels = {"gen_ai_request_model": "simulated", "rhizome_proxy_face": "http"}
    assert figure(found, duration, error_type="", **labels) == 1
    assert figure(found, first, **labels) == 1
    assert figure(found, duration, gen_ai_request_model="other") == 2, "clients make no time series"
    total = "rhizome_proxy_requests_total"
    assert figure(found, total, face="http", backend=url(server), code="200") == 1
    assert figure(found, total, face="http", backend=url(server), code="404", error_type="") == 2
    assert figure(found, "rhizome_proxy_backend_state", backend=url(server), state="ready") == 1
    assert figure(found, "rhizome_proxy_open_requests", face="http") == 0
    server.faults.stall = 2
    peer = await face.begin(CHAT, {**CHATS, "stream": True})
    await peer.reader.readuntil(b"content")
    found = await figures(face)
    assert figure(found, "rhizome_proxy_open_requests", face="http") == 1
    assert figure(found, "rhizome_proxy_backend_in_flight", backend=url(server)) == 1
    peer.writer.close()
    await eventually(lambda: face.proxy.router.http.open == 0)
    assert figure(await figures(face), total, code="200", error_type="truncated") == 1


async def test_a_backend_that_breaks_is_counted(bench: Bench):
    one, other = await bench.simulate(), await bench.simulate()
    face = await bench.proxy(one, other)
    for server in (one, other):
        server.faults.reset, server.faults.count = 3, 1
    await face.stream(CHAT, {**CHATS, "max_tokens": 9})
    found = await figures(face)
    assert figure(found, "rhizome_proxy_resumes_total") == face.proxy.router.counts.resumes > 0
    assert figure(found, "rhizome_proxy_requests_total", code="200", error_type="") == 1


async def test_polls_do_not_disturb_and_are_not_counted(bench: Bench):
    face = await bench.proxy(await bench.simulate())
    await asyncio.gather(*(face.client.get(path) for path in ("/health", "/metrics", "/v1/models") * 20))
    assert figure(await figures(face), "rhizome_proxy_requests_total") == 0
