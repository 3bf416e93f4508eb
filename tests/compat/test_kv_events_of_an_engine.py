"""KV events that a real engine publishes: read by our own proxy's consumer, and kept on its host."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc.aio
import numpy as np
import pytest
from tests.compat.conftest import DEMO, eventually

from rhizome.engine.v1.engine_service_pb2 import WatchKvEventsRequest
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome_backends.vllm_events import follow_vllm
from rhizome_engine.settings import EngineSettings, parse_settings
from rhizome_routing.policies.ask import Ask
from rhizome_routing.prefix.index import PrefixIndex
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.hash_core import token_request
from rhizome_testing.ports import free_ports


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EngineProcess, str, str]]:
    events, replay = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    options = ("--kv-events-endpoint", events, "--kv-events-replay-endpoint", replay)
    with EngineProcess(DEMO, tmp_path_factory.mktemp("engine"), *options) as one:
        one.wait_serving()
        yield one, events, replay


async def test_our_proxys_consumer_knows_exactly_what_an_engine_holds(
    engine: tuple[EngineProcess, str, str],
) -> None:
    process, events, replay = engine
    prompt = np.random.default_rng(0).integers(8, 1100, 600, dtype=np.uint32)
    chain = Ask(prompt).chain(16).hashes
    assert len(chain) > 3

    async def ask(tokens: Any) -> None:
        """Again and again while the core is loading."""
        request = token_request(tokens.tolist(), max_tokens=1)
        async with asyncio.timeout(60), grpc.aio.insecure_channel(process.target) as channel:
            stub: Any = EngineServiceStub(channel)
            while True:
                try:
                    assert [event async for event in stub.Generate(request)]
                    return
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    await asyncio.sleep(0.05)

    index = PrefixIndex()
    await ask(prompt[:300])
    following = asyncio.create_task(follow_vllm(index, "engine", events, replay_endpoint=replay))
    try:
        shorter = len(Ask(prompt[:300]).chain(16).hashes)
        for start in range(0, 900, 20):  # until the subscription has arrived
            if index.view("engine").exact:
                break
            await ask(prompt[start % 500 : start % 500 + 40])
        await eventually(lambda: index.match(chain).get("engine") == shorter)
        await ask(prompt)
        await eventually(lambda: index.match(chain).get("engine") == len(chain))
        assert index.view("engine").exact
        process.core().kill()
        await eventually(lambda: len(index) == 0)
        await ask(prompt)
        await eventually(lambda: index.match(chain).get("engine") == len(chain))
        assert index.view("engine").exact
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_nobody_is_told_tokens_over_our_own_contract(engine: tuple[EngineProcess, str, str]) -> None:
    async with grpc.aio.insecure_channel(engine[0].target) as channel:
        stub: Any = EngineServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.WatchKvEvents(WatchKvEventsRequest(with_token_ids=True)).read()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kv-events-endpoint", "tcp://*:5557"], "reached from other hosts"),
        (["--kv-events-endpoint", "tcp://10.0.0.7:5557"], "reached from other hosts"),
        (
            ["--kv-events-endpoint", "tcp://127.0.0.1:1", "--kv-events-replay-endpoint", "tcp://[::]:2"],
            "--kv-events-replay-endpoint",
        ),
        (["--kv-events-endpoint", "5557"], "an endpoint is"),
        (["--kv-events-endpoint", "tcp://127.0.0.1:70000"], "an endpoint is"),
        (["--kv-events-replay-endpoint", "tcp://127.0.0.1:5"], "give --kv-events-endpoint, too"),
    ],
)
def test_endpoints_that_others_reach_need_a_word_for_it(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", str(DEMO), *options]
    with pytest.raises(SystemExit):
        parse_settings(EngineSettings, given, program="rhizome-engine")
    assert message in capsys.readouterr().err
    if "reached from" in message:
        allowed = parse_settings(
            EngineSettings, [*given, "--expose-token-ids", "true"], program="rhizome-engine"
        )
        assert allowed.kv_events() is not None
