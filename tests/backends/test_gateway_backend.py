"""Rhizome's own gateway as a backend."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
from tests.backends.conftest import opening
from tests.gateway.conftest import RunningGateway, eventually, running_gateway

from rhizome.engine.v1.load_pb2 import Load
from rhizome_backends.openai import read_gateway
from rhizome_relay.pool import Pools
from rhizome_testing.talking_engine import TalkingEngine

LOAD = Load(
    running_requests=3, waiting_requests=2, waiting_tokens=512, kv_pages_total=100, kv_pages_in_use=40,
    kv_pages_cached=60, page_size=16,
)  # fmt: skip


@pytest.fixture
async def engine() -> AsyncIterator[TalkingEngine]:
    async with TalkingEngine() as engine:
        yield engine


@pytest.fixture
async def gateway(engine: TalkingEngine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(engine.target) as gateway:
        await gateway.becomes_ready()
        yield gateway


async def test_tells_the_load_of_its_engines(
    gateway: RunningGateway, engine: TalkingEngine, pools: Pools
) -> None:
    engine.load = LOAD
    server = opening(gateway.url, pools=pools)

    async def told() -> bool:
        probe = await server.probe(10.0)
        assert probe.serving
        assert probe.models == ("talking-model",)
        if probe.load is None:
            return False
        probe.load.instance_id = ""
        return probe.load == LOAD

    await eventually(told)
    assert server.kind == "openai"


async def test_is_not_ready_without_an_engine(pools: Pools) -> None:
    async with contextlib.AsyncExitStack() as engine_runs:
        engine = await engine_runs.enter_async_context(TalkingEngine())
        async with running_gateway(engine.target) as gateway:
            await gateway.becomes_ready()
            server = opening(gateway.url, pools=pools)
            for _ in range(2):
                assert (await server.probe(10.0)).serving
            await engine_runs.aclose()

            async def unready() -> bool:
                probe = await server.probe(10.0)
                return not probe.serving and probe.reason.startswith("it answers 503")

            await eventually(unready)


def test_null_is_unknown() -> None:
    assert read_gateway(b'{"engine": null, "queue": null, "cache": null}') is None
    told = b'{"engine": {"running_requests": 1}, "queue": {"waiting_requests": null}, "cache": null}'
    assert read_gateway(told) == Load(running_requests=1)
