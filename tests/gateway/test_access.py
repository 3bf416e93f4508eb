"""Who may come in, on the real gateway: every route, with and without a key."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.routing import Route
from tests.gateway.conftest import RunningGateway, running_gateway

from rhizome_gateway.app import Gateway, hot_routes
from rhizome_gateway.auth.exposure import ExposureError, check_exposure
from rhizome_gateway.settings import GatewaySettings
from rhizome_testing.talking_engine import Hang, TalkingEngine

KEYS = {
    "alice": {},
    "bob": {"models": ["other-*"]},
    "carol": {"requests_per_minute": 2},
    "dave": {"max_concurrency": 1},
    "erin": {"tokens_per_minute": 100},
}
PUBLIC = {"/health", "/ready"}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    lines = []
    for name, limits in KEYS.items():
        digest = hashlib.sha256(f"sk-{name}".encode()).hexdigest()
        lines += ["[[keys]]", f'name = "{name}"', f'sha256 = "{digest}"']
        lines += [f"{field} = {value!r}" for field, value in limits.items()]
    path = tmp_path / "keys.toml"
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    return path


@pytest.fixture
async def guarded(engine: TalkingEngine, keys_file: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(engine.target, keys_file=keys_file, max_open_requests=3) as gateway:
        await gateway.becomes_ready()
        yield gateway


def _as(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer sk-{name}"}


async def _ask(gateway: RunningGateway, name: str, **fields: object) -> httpx.Response:
    body = {"model": "talking-model", "messages": [{"role": "user", "content": "Hi"}]} | fields
    return await gateway.http.post("/v1/chat/completions", json=body, headers=_as(name))


async def test_no_route_is_reached_without_a_key(guarded: RunningGateway) -> None:
    application: Gateway = guarded.server._gateway
    routes = [
        (method, route.path.replace("{model_id:path}", "m"))
        for route in application.api.routes
        if isinstance(route, Route)
        for method in route.methods or ()
    ]
    routes += [("POST", route.path) for route in hot_routes(application.api.state.runtime)]
    assert len(routes) > 10
    for method, path in [*routes, ("GET", "/nowhere"), ("OPTIONS", "/v1/models"), ("TRACE", "/metrics")]:
        for headers in ({}, {"authorization": "Bearer sk-mallory"}, {"x-api-key": ""}):
            answer = await guarded.http.request(method, path, headers=headers)
            if path in PUBLIC:
                assert answer.status_code in (200, 405), path
                continue
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                assert answer.json()["error"]["message"]
        answer = await guarded.http.request(method, path, headers=_as("alice"))
        assert answer.status_code != 401, (method, path)


async def test_a_tenant_has_its_own_cache(guarded: RunningGateway, engine: TalkingEngine) -> None:
    await _ask(guarded, "alice")
    await _ask(guarded, "erin", max_tokens=5)
    await _ask(guarded, "alice", cache_salt="x")
    namespaces = [submit.request.cache_namespace for submit in engine.submits]
    assert namespaces[:2] == ["alice", "erin"]
    assert namespaces[2].startswith("alice#") and len(set(namespaces)) == 3
    assert [submit.request.tenant for submit in engine.submits] == ["alice", "erin", "alice"]


async def test_a_key_sees_and_uses_its_models_only(guarded: RunningGateway) -> None:
    models = (await guarded.http.get("/v1/models", headers=_as("bob"))).json()
    assert models["data"] == []
    refused = await _ask(guarded, "bob")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")


async def test_a_key_that_asks_too_often_waits(guarded: RunningGateway) -> None:
    answers = [await _ask(guarded, "carol") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    error = answers[-1].json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
    assert (await _ask(guarded, "alice")).status_code == 200


async def test_tokens_are_counted_as_they_were_used(guarded: RunningGateway) -> None:
    first = await _ask(guarded, "erin", max_tokens=50)
    assert first.status_code == 200  # 25 prompt tokens, 6 of 50
    second = await _ask(guarded, "erin", max_tokens=30)
    assert second.status_code == 200, second.text
    assert (await _ask(guarded, "erin", max_tokens=70)).status_code == 429


async def test_open_requests_are_limited_for_a_key_and_for_all(
    guarded: RunningGateway, engine: TalkingEngine
) -> None:
    engine.script = lambda prompt: [Hang()]
    body = {"model": "talking-model", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    url = "/v1/chat/completions"
    async with guarded.http.stream("POST", url, json=body, headers=_as("dave")) as first:
        assert first.status_code == 200
        assert (await _ask(guarded, "dave")).status_code == 429
        async with (
            guarded.http.stream("POST", url, json=body, headers=_as("alice")),
            guarded.http.stream("POST", url, json=body, headers=_as("alice")),
        ):
            full = await _ask(guarded, "alice")
            assert (full.status_code, full.json()["error"]["code"]) == (503, "overloaded")
            assert full.headers["retry-after"]
            assert (await guarded.http.get("/health")).status_code == 200


def test_strangers_come_in_only_where_that_is_meant() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "gateway.example"):
        with pytest.raises(ExposureError, match="--keys-file"):
            check_exposure(host, has_keys=False, allow_open=False)
        check_exposure(host, has_keys=True, allow_open=False)
        check_exposure(host, has_keys=False, allow_open=True)
    check_exposure("127.0.0.1", has_keys=False, allow_open=False)


def test_a_broken_keys_file_is_told_at_the_start(tmp_path: Path) -> None:
    from rhizome_gateway.auth.keys_file import KeysFileError

    path = tmp_path / "keys.toml"
    path.write_text("[[keys]]\nname = 5\n")
    with pytest.raises(KeysFileError):
        Gateway(GatewaySettings(keys_file=path))
