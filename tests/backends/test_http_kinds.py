"""What each kind of server tells of itself: simulated ones that are busy, and answers of old versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import orjson
import pytest
from tests.backends.conftest import Script, Simulate, opening
from tests.backends.scripted_routes import models
from tests.relay.conftest import eventually

from rhizome.engine.v1.load_pb2 import Load
from rhizome_backends import http_server, vllm
from rhizome_backends.base import Probe, Server
from rhizome_backends.detect import HTTP_KINDS
from rhizome_launcher.simulate.http.server import HttpServer
from rhizome_relay.pool import Pools
from rhizome_transport.errors import EngineError

LOADED = ["vllm", "sglang", "llamacpp", "tgi"]
"""Kinds that tell their load."""

PROMPT = "Once upon a time"


def figures(probe: Probe) -> dict[str, int]:
    """The fields that are known."""
    assert probe.load is not None
    return {field.name: value for field, value in probe.load.ListFields() if field.name != "instance_id"}


@asynccontextmanager
async def occupied(server: HttpServer, requests: int) -> AsyncIterator[None]:
    """A server with so many open requests; the first one's step never ends, so it runs alone."""
    body = orjson.dumps({"model": "simulated", "prompt": PROMPT, "max_tokens": 50, "stream": True})
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    writers = []
    for _ in range(requests):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head + body)
        writers.append(writer)
    engine = server.engine
    await eventually(lambda: (engine.running, engine.waiting) == (1, requests - 1))
    yield
    for writer in writers:
        writer.close()


def opened(pools: Pools, server: HttpServer, kind: str = "", **options: Any) -> Server:
    return opening(f"http://127.0.0.1:{server.port}", kind=kind, pools=pools, **options)


@pytest.mark.parametrize("kind", sorted(HTTP_KINDS))
async def test_serves_its_model(pools: Pools, simulate: Simulate, kind: str) -> None:
    server = opened(pools, await simulate(kind), kind)
    assert server.kind == kind
    probe = await server.probe(5.0)
    assert (probe.serving, probe.reason, probe.models) == (True, "", ("simulated",))
    if kind not in LOADED:
        assert probe.load is None
    else:
        known = figures(probe)
        assert (known["running_requests"], known["waiting_requests"]) == (0, 0)
    await server.close()


@pytest.mark.parametrize("kind", LOADED)
async def test_tells_what_runs_and_what_waits(pools: Pools, simulate: Simulate, kind: str) -> None:
    simulated = await simulate(kind)
    server = opened(pools, simulated, kind)
    async with occupied(simulated, 5):
        known = figures(await server.probe(5.0))
        assert (known["running_requests"], known["waiting_requests"]) == (1, 4)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
async def test_tells_the_size_and_use_of_its_cache(pools: Pools, simulate: Simulate, kind: str) -> None:
    simulated = await simulate(kind, kv_blocks=100, block_size=2)
    server = opened(pools, simulated, kind)
    async with occupied(simulated, 3):
        await server.probe(5.0)  # some of it is known from the second time on
        known = figures(await server.probe(5.0))
    assert (known["kv_pages_total"], known["page_size"]) == (100, 2)
    assert known["kv_pages_in_use"] == simulated.engine.pool.in_use > 0


@pytest.mark.parametrize("kind", sorted(HTTP_KINDS))
async def test_unhealthy_is_not_serving_until_it_is_well_again(
    pools: Pools, simulate: Simulate, kind: str
) -> None:
    simulated = await simulate(kind)
    server = opened(pools, simulated, kind)
    simulated.faults.unhealthy = True
    probe = await server.probe(5.0)
    assert not probe.serving
    assert probe.reason == "it answers 503: the simulated server is unhealthy"
    assert probe.load is None
    simulated.faults.unhealthy = False
    assert (await server.probe(5.0)).serving


@pytest.mark.parametrize("kind", ["vllm", "tgi"])
async def test_without_metrics_its_load_is_unknown_and_not_zero(
    pools: Pools, simulate: Simulate, kind: str
) -> None:
    simulated = await simulate(kind)
    simulated.faults.metrics_missing = True
    probe = await opened(pools, simulated, kind).probe(5.0)
    assert probe.serving
    assert probe.load is None


async def test_llamacpp_without_metrics_tells_its_slots(pools: Pools, simulate: Simulate) -> None:
    for slots, known in ((2, {"running_requests": 1, "waiting_requests": 0}), (1, {"running_requests": 1})):
        simulated = await simulate("llamacpp", max_running=slots)
        simulated.faults.metrics_missing = True
        async with occupied(simulated, 1):  # how many wait when all are busy it does not say
            assert figures(await opened(pools, simulated, "llamacpp").probe(5.0)) == known


async def test_metrics_are_looked_for_again_now_and_then(
    pools: Pools, simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "REFRESH_S", 0.0)
    simulated = await simulate("vllm")
    simulated.faults.metrics_missing = True
    server = opened(pools, simulated, "vllm")
    assert (await server.probe(5.0)).load is None
    simulated.faults.metrics_missing = False
    assert (await server.probe(5.0)).load is not None


@pytest.mark.parametrize("kind", sorted(HTTP_KINDS))
async def test_refused_connections_are_unavailable_and_what_comes_back_is_new(
    pools: Pools, simulate: Simulate, kind: str
) -> None:
    simulated = await simulate(kind)
    server = opened(pools, simulated, kind)
    before = await server.probe(5.0)
    simulated.stop()
    with pytest.raises(EngineError) as raised:
        await server.probe(5.0)
    assert raised.value.code is grpc.StatusCode.UNAVAILABLE
    again = await simulate(kind, simulated.port)
    again.model = "another"
    after = await server.probe(5.0)
    assert after.models == ("another",)
    if before.load is not None and after.load is not None:
        assert before.load.instance_id != after.load.instance_id


async def test_one_life_has_one_instance_id(pools: Pools, simulate: Simulate) -> None:
    server = opened(pools, await simulate("vllm"), "vllm")
    ids = {probe.load.instance_id for probe in [await server.probe(5.0) for _ in range(3)] if probe.load}
    assert len(ids) == 1


@pytest.mark.parametrize("kind", sorted(HTTP_KINDS))
async def test_no_answer_is_a_deadline(pools: Pools, script: Script, kind: str) -> None:
    paths = ["/", "/health", "/v1/models", "/metrics", "/slots", "/api/tags", "/v1/loads?include=core"]
    server = opening((await script(dict.fromkeys(paths))).url, kind=kind, pools=pools)
    with pytest.raises(EngineError) as raised:
        await server.probe(0.1)
    assert raised.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_what_is_slow_to_come_is_unknown_to_who_is_well(pools: Pools, script: Script) -> None:
    """llama.cpp answers for its load between two steps, and a step may read a long prompt."""
    routes = await script({"/health": {"status": "ok"}, "/metrics": None, "/v1/models": models("m")})
    server = opening(routes.url, kind="llamacpp", pools=pools)
    assert await server.probe(0.2) == Probe(serving=True, models=("m",))
    assert await server.probe(0.2) == Probe(serving=True, models=("m",))


async def test_models_are_asked_for_now_and_then_only(pools: Pools, script: Script) -> None:
    routes = await script({"/health": {}, "/metrics": b"", "/v1/models": models("m", "lora")})
    server = opening(routes.url, kind="vllm", pools=pools)
    for _ in range(4):
        assert (await server.probe(5.0)).models == ("m", "lora")
    assert routes.asked == {"/health": 4, "/metrics": 4, "/v1/models": 1}
    assert routes.accepted <= 3


@pytest.mark.parametrize("junk", [b"<html>", [], {}, {"data": "m"}, {"data": [1]}, {"data": [{}]}, None])
async def test_junk_for_models_keeps_those_that_were_known(pools: Pools, script: Script, junk: Any) -> None:
    routes = await script({"/health": {}, "/v1/models": models("m")})
    server = opening(routes.url, kind="openai", pools=pools)
    await server.probe(5.0)
    routes.routes |= {"/v1/models": junk, "/health": (503, {})}
    await server.probe(0.2)
    routes.routes["/health"] = {}
    assert (await server.probe(0.2)).models == ("m",)


async def test_a_key_is_sent_and_a_wrong_one_said_to_be_wrong(pools: Pools, script: Script) -> None:
    routes = await script({"/health": {}, "/v1/models": models("m")}, key="secret")
    assert (await opening(routes.url, kind="openai", key="secret", pools=pools).probe(5.0)).serving
    probe = await opening(routes.url, kind="openai", key="wrong", pools=pools).probe(5.0)
    assert probe == Probe(serving=False, reason="it answers 401: its key is missing or wrong")


async def test_loading_llamacpp_says_so(pools: Pools, script: Script) -> None:
    error = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    routes = await script(dict.fromkeys(["/health", "/v1/models", "/metrics"], (503, error)))
    for kind in ("llamacpp", ""):
        server = opening(routes.url, kind=kind, pools=pools)
        try:
            reason = (await server.probe(5.0)).reason
        except EngineError as unknown_kind:
            reason = unknown_kind.message
        assert reason == "it answers 503: Loading model"


# vLLM


def page(*lines: str) -> bytes:
    return "\n".join(["# HELP x y", "# TYPE x gauge", *lines, ""]).encode()


def test_vllm_sums_over_its_engines() -> None:
    lines = []
    for engine, (running, waiting, usage) in enumerate([(3, 1, 0.5), (4, 0, 0.25)]):
        labels = f'engine="{engine}",model_name="a\\"}} b"'
        lines += [
            f"vllm:num_requests_running{{{labels}}} {running}.0",
            f"vllm:num_requests_waiting{{{labels}}} {waiting}.0",
            f'vllm:num_requests_waiting_by_reason{{{labels},reason="capacity"}} 7.0',
            f"vllm:kv_cache_usage_perc{{{labels}}} {usage}",
            f'vllm:cache_config_info{{block_size="16",engine="{engine}",num_gpu_blocks="1000"}} 1.0',
        ]
    assert vllm.read_load(page(*lines)) == Load(
        running_requests=7,
        waiting_requests=1,
        kv_pages_total=2000,
        kv_pages_in_use=750,
        page_size=16,
    )


def test_vllm_of_old_named_its_cache_otherwise() -> None:
    lines = [
        'vllm:num_requests_running{model_name="m"} 1.0',
        'vllm:num_requests_waiting{model_name="m"} 2.0',
        'vllm:gpu_cache_usage_perc{model_name="m"} 0.1',
        'vllm:cache_config_info{block_size="32",num_gpu_blocks="50"} 1.0',
    ]
    load = vllm.read_load(page(*lines))
    assert load == Load(
        running_requests=1, waiting_requests=2, kv_pages_total=50, kv_pages_in_use=5, page_size=32
    )


@pytest.mark.parametrize(
    ("lines", "known"),
    [
        ([], None),
        (["vllm:num_requests_running 1.0"], Load(running_requests=1)),
        (["vllm:num_requests_running NaN", "vllm:num_requests_waiting 2"], Load(waiting_requests=2)),
        (["vllm:num_requests_running -1", "vllm:num_requests_waiting +Inf"], None),
        (['vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0'], None),
        (["vllm:kv_cache_usage_perc 0.5", "vllm:num_requests_waiting 0"], Load(waiting_requests=0)),
    ],
)
def test_what_vllm_does_not_tell_is_unknown(lines: list[str], known: Load | None) -> None:
    assert vllm.read_load(page(*lines)) == known


# SGLang


async def test_sglang_is_rarely_asked_to_generate(pools: Pools, script: Script) -> None:
    """Its /health makes a token."""
    loads = {
        "loads": [
            {"num_running_reqs": 1, "num_waiting_reqs": 2},
            {"num_running_reqs": 3, "num_waiting_reqs": 4},
        ]
    }
    routes = await script({"/health": {}, "/v1/models": models("m"), "/v1/loads?include=core": loads})
    server = opening(routes.url, kind="sglang", pools=pools)
    for _ in range(5):
        probe = await server.probe(5.0)
        assert figures(probe) == {"running_requests": 4, "waiting_requests": 6}
        assert probe.models == ("m",)
    assert routes.asked["/health"] == 1
    routes.routes["/v1/models"] = (500, {})
    assert not (await server.probe(5.0)).serving
    assert routes.asked["/health"] == 1
    assert (await server.probe(5.0)).serving
    assert routes.asked["/health"] == 2


async def test_sglang_of_old_is_asked_for_its_load_otherwise(pools: Pools, script: Script) -> None:
    load = [
        {"dp_rank": 0, "num_reqs": 5, "num_waiting_reqs": 2},
        {"dp_rank": 1, "num_reqs": 1, "num_waiting_reqs": 0},
    ]
    routes = await script({"/health": {}, "/v1/models": models("m"), "/get_load": load})
    server = opening(routes.url, kind="sglang", pools=pools)
    for _ in range(3):
        assert figures(await server.probe(5.0)) == {"running_requests": 4, "waiting_requests": 2}
    assert routes.asked["/v1/loads?include=core"] == 1


# Ollama


async def test_ollama_serves_the_latest_of_a_model_without_its_tag(pools: Pools, script: Script) -> None:
    tags = {"models": [{"model": "llama3:latest"}, {"model": "qwen3:0.6b"}]}
    routes = await script({"/": b"Ollama is running", "/api/tags": tags})
    probe = await opening(routes.url, kind="ollama", pools=pools).probe(5.0)
    assert probe.models == ("llama3:latest", "qwen3:0.6b", "llama3")
    routes.routes["/api/tags"] = {"models": None}
    assert (await opening(routes.url, kind="ollama", pools=pools).probe(5.0)).models == ()


# the OpenAI API


async def test_an_api_without_health_lives_while_it_answers(pools: Pools, script: Script) -> None:
    routes = await script({"/v1/models": models("gpt")})
    assert await opening(routes.url, kind="openai", pools=pools).probe(5.0) == Probe(
        serving=True, models=("gpt",)
    )


async def test_llama_cpp_python_is_asked_for_models_once(
    pools: Pools, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To answer, it breaks off the stream that runs."""
    monkeypatch.setattr(http_server, "REFRESH_S", 0.0)
    routes = await script({"/v1/models": models("m", owned_by="me")})
    server = opening(routes.url, pools=pools)
    for _ in range(4):
        assert (await server.probe(5.0)).models == ("m",)
    assert server.kind == "openai"
    assert routes.asked["/v1/models"] == 2  # to find out its kind, and then
