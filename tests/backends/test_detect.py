"""Finding out what answers at an address."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from tests.backends.conftest import Script, Simulate, opening
from tests.backends.scripted_routes import models

from rhizome_backends.base import Probe, Server
from rhizome_backends.detect import HTTP_KINDS, DetectingServer, detect
from rhizome_backends.rhizome import RhizomeEngine
from rhizome_relay.origin import read_origin
from rhizome_relay.pool import Pools
from rhizome_testing.ports import free_ports
from rhizome_transport.errors import EngineError


@pytest.mark.parametrize("kind", sorted(HTTP_KINDS))
async def test_knows_every_kind(pools: Pools, simulate: Simulate, kind: str) -> None:
    simulated = await simulate(kind)
    origin = read_origin(f"http://127.0.0.1:{simulated.port}")
    assert await detect(pools, origin, (), 5.0) == kind


@pytest.mark.parametrize(
    ("kind", "routes"),
    [
        ("llamacpp", {"/props": {"default_generation_settings": {}, "total_slots": 1}}),
        ("tgi", {"/info": {"model_id": "m"}, "/version": {"version": "1"}}),
        ("ollama", {"/api/version": {"version": "0.13.0"}, "/v1/models": {"object": "list", "data": None}}),
        ("sglang", {"/server_info": {"page_size": 1}}),
        ("sglang", {"/get_server_info": {"page_size": 1}}),
        ("vllm", {"/version": {"version": "0.29.0"}}),
        ("openai", {"/info": (200, b"<html>"), "/version": ["1"], "/props": (500, {})}),
        ("openai", {"/v1/models": models("m", owned_by="rhizome")}),
        ("openai", {"/v1/models": {"data": [{"owned_by": "vllm"}, {"owned_by": "sglang"}]}}),
        ("openai", {"/v1/models": {"data": 5}}),
        ("openai", {"/v1/models": {"object": "list", "data": [{"id": "m"}, 1, {"owned_by": ["vllm"]}]}}),
    ],
)
async def test_what_the_owner_does_not_tell_routes_do(
    pools: Pools, script: Script, kind: str, routes: dict[str, Any]
) -> None:
    server = await script({"/v1/models": models("m"), **routes})
    assert await detect(pools, read_origin(server.url), (), 5.0) == kind


async def test_a_web_server_is_none_of_them(pools: Pools, script: Script) -> None:
    server = await script({"/": b"It works!"})
    with pytest.raises(EngineError, match="it lists no models at /v1/models") as raised:
        await detect(pools, read_origin(server.url), (), 5.0)
    assert raised.value.code is grpc.StatusCode.UNAVAILABLE


async def test_a_refused_key_is_told(pools: Pools, script: Script) -> None:
    server = await script({"/v1/models": models("m")}, key="secret")
    with pytest.raises(EngineError, match="its key is missing or wrong"):
        await opening(server.url, pools=pools).probe(5.0)
    detecting = opening(server.url, key="secret", pools=pools)
    assert (await detecting.probe(5.0)).serving


async def test_vllm_is_known_without_its_key(pools: Pools, script: Script) -> None:
    """Only what begins with /v1 needs one there; clients may bring theirs."""
    routes = {
        "/v1/models": (401, {"error": "Unauthorized"}),
        "/version": {"version": "0.29.0"},
        "/health": {},
    }
    server = opening((await script(routes)).url, pools=pools)
    assert await server.probe(5.0) == Probe(serving=True)
    assert server.kind == "vllm"


async def test_a_route_that_never_answers_tells_nothing(pools: Pools, script: Script) -> None:
    routes = await script({"/v1/models": models("m"), "/props": None, "/version": {"version": "0.29.0"}})
    assert await detect(pools, read_origin(routes.url), (), 0.2) == "vllm"


async def test_a_server_that_is_down_has_no_kind_yet(pools: Pools, simulate: Simulate) -> None:
    (port,) = free_ports(1)
    server = opening(f"http://127.0.0.1:{port}", pools=pools)
    with pytest.raises(EngineError) as raised:
        await server.probe(5.0)
    assert raised.value.code is grpc.StatusCode.UNAVAILABLE
    assert server.kind == ""
    await simulate("sglang", port)
    assert (await server.probe(5.0)).load is not None
    assert server.kind == "sglang"


async def test_what_takes_the_address_over_is_detected_anew(pools: Pools, simulate: Simulate) -> None:
    first = await simulate("vllm")
    server = opening(f"http://127.0.0.1:{first.port}", pools=pools)
    await server.probe(5.0)
    assert server.kind == "vllm"
    first.stop()
    with pytest.raises(EngineError):
        await server.probe(5.0)
    assert server.kind == "vllm"
    await simulate("llamacpp", first.port)
    assert (await server.probe(5.0)).load is not None
    assert server.kind == "llamacpp"


async def test_is_detected_once_in_its_life(pools: Pools, script: Script) -> None:
    routes = await script({"/v1/models": models("m", owned_by="vllm"), "/health": {}})
    server = opening(routes.url, pools=pools)
    for _ in range(3):
        await server.probe(5.0)
    assert routes.asked["/v1/models"] == 2
    routes.routes["/health"] = None  # slow is not gone
    with pytest.raises(EngineError):
        await server.probe(0.1)
    routes.routes["/health"] = {}
    await server.probe(5.0)
    assert routes.asked["/v1/models"] == 2
    routes.routes["/health"] = (503, {})
    assert not (await server.probe(5.0)).serving
    await server.probe(5.0)
    assert routes.asked["/v1/models"] == 4


async def test_opens_what_the_address_says(pools: Pools) -> None:
    expected = {
        "127.0.0.1:1": RhizomeEngine, "http://127.0.0.1:1": DetectingServer, "https://h/v1": DetectingServer,
    }  # fmt: skip
    servers: list[Server] = [opening(address, pools=pools) for address in expected]
    assert [type(server) for server in servers] == list(expected.values())
    servers.append(opening("127.0.0.1:1", kind="rhizome", pools=pools))
    for server in servers:
        await server.close()


@pytest.mark.parametrize(
    ("address", "options", "told"),
    [
        ("http://h:1", {"kind": "rhizome"}, "cannot be of kind 'rhizome'; use one of vllm, "),
        ("http://h:1", {"events": "h:5557"}, "must be one or two ZeroMQ addresses"),
        ("http://h:1", {"events": "tcp://h:5557,h:5558"}, "must be one or two ZeroMQ addresses"),
        ("http://h:1", {"key": "a\r\nx: y"}, "must be printable ASCII"),
        ("http://h:1", {"key": "schlüssel"}, "must be printable ASCII"),
        ("http://", {}, "is no backend"),
        ("h:1", {"kind": "vllm"}, "or write http://h:1"),
        ("h:1", {"key": "k"}, "or write http://h:1"),
        ("h:1", {"events": "tcp://h:1"}, "or write http://h:1"),
    ],
)
async def test_refuses_what_does_not_fit(
    pools: Pools, address: str, options: dict[str, str], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        opening(address, pools=pools, **options)
