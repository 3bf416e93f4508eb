"""Backends that are engine cores, reached over ZeroMQ; beside one that is reached over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest

from rhizome.engine.v1 import engine_service_pb2 as engine_pb2
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome_backends.spec import parse_specs
from rhizome_proxy.server import ProxyServer
from rhizome_proxy.settings import ProxySettings, parse_settings
from rhizome_testing.engine_ways import ask, kinds, make_curve, tokens_of
from rhizome_testing.scripted_engine import ScriptedCore
from rhizome_testing.scripted_front import ScriptedFront
from rhizome_transport.channel import open_channel
from rhizome_transport.curve import new_key
from rhizome_transport.grpc_client import GrpcEngineClient


class Pool:
    """Cores, a proxy in front of them, a client in front of that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cores: list[ScriptedCore] = []
        self.proxy: ProxyServer
        self.client: GrpcEngineClient
        self.channel: grpc.aio.Channel
        self.stops: list[object] = []

    def core(self, name: str, **options: object) -> ScriptedCore:
        self.cores.append(ScriptedCore(f"ipc://{self.folder}/run/{name}.ipc", instance_id=name, **options))
        return self.cores[-1]

    async def start(self, *backends: str, **settings: object) -> None:
        options = {"poll_interval_s": 0.05, "poll_timeout_s": 5.0} | settings
        self.proxy = ProxyServer(ProxySettings(backends=",".join(backends), port=0, **options))
        target = f"127.0.0.1:{await self.proxy.start()}"
        self.client = GrpcEngineClient(target, peer_name="gateway")
        self.channel = open_channel(target)

    async def stop(self) -> None:
        await self.client.close()
        await self.channel.close()
        await self.proxy.stop(0.0)
        for core in self.cores:
            core.stop()


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    with TemporaryDirectory(prefix="rz-") as folder:
        pool = Pool(Path(folder))
        yield pool
        await pool.stop()


async def test_cores_get_requests_beside_an_engine_over_grpc(pool, eventually):
    first, second, third = pool.core("a"), pool.core("b"), pool.core("c")
    front = ScriptedFront(third.endpoint)
    await pool.start(first.endpoint, second.endpoint, await front.start(), policy="round_robin")
    await eventually(lambda: len(pool.proxy.registry.ready()) == 3)
    answers = await asyncio.gather(*(run(pool, f"count-{number}") for number in range(12)))
    assert answers == [list(range(5))] * 12
    assert all(core.script.submits for core in pool.cores)
    await front.stop()


async def run(pool: Pool, request_id: str) -> list[int]:
    return tokens_of([event async for event in pool.client.generate(ask(request_id))])


async def test_a_core_that_dies_hands_its_requests_to_the_other(pool, eventually):
    first, second = pool.core("a"), pool.core("b")
    await pool.start(first.endpoint, second.endpoint)
    await eventually(lambda: len(pool.proxy.registry.ready()) == 2)
    waiting = [asyncio.ensure_future(run(pool, f"queue-{number}")) for number in range(8)]
    await eventually(lambda: len(first.script.submits) + len(second.script.submits) == 8)
    assert first.script.submits
    first.stop()
    await eventually(lambda: len(second.script.submits) == 8)
    for one in waiting:
        one.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await eventually(lambda: second.open_requests == 0)
    assert await run(pool, "count-1") == list(range(5))
    await eventually(lambda: len(pool.proxy.registry.ready()) == 1)
    pool.cores[0] = ScriptedCore(first.endpoint, instance_id="again")
    await eventually(lambda: len(pool.proxy.registry.ready()) == 2)


async def test_every_other_method_reaches_a_core(pool, eventually):
    core = pool.core("a")
    await pool.start(core.endpoint)
    await eventually(lambda: len(pool.proxy.registry.ready()) == 1)
    stub = EngineServiceStub(pool.channel)
    assert (await stub.GetModelInfo(engine_pb2.GetModelInfoRequest())).model == "scripted"
    assert [chunk async for chunk in stub.GetTokenizer(engine_pb2.GetTokenizerRequest())]
    events = [event async for event in stub.Generate(ask("count-unary", 20))]
    assert (kinds(events)[0], kinds(events)[-1]) == ("started", "finished")
    assert tokens_of(events) == list(range(20))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Detokenize(engine_pb2.DetokenizeRequest(token_ids=[1]))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await stub.Abort(engine_pb2.AbortRequest(request_ids=["nobody"]))


async def test_giving_up_a_generate_cancels_in_the_core(pool, eventually):
    core = pool.core("a")
    await pool.start(core.endpoint)
    await eventually(lambda: len(pool.proxy.registry.ready()) == 1)
    call = EngineServiceStub(pool.channel).Generate(ask("hang-unary"))
    assert (await call.read()).HasField("started")
    call.cancel()
    await eventually(lambda: core.script.cancels == ["hang-unary"])


async def test_the_deadline_of_a_generate_travels_to_the_core(pool, eventually):
    core = pool.core("a")
    await pool.start(core.endpoint)
    await eventually(lambda: len(pool.proxy.registry.ready()) == 1)
    trace = f"00-{'c' * 32}-{'d' * 16}-01"
    call = EngineServiceStub(pool.channel).Generate(
        ask("count-1"), timeout=60.0, metadata=(("traceparent", trace),)
    )
    assert [event async for event in call]
    (submit,) = core.script.submits
    assert 0 < submit.timeout.seconds <= 60
    assert submit.trace.traceparent.split("-")[1] == "c" * 32


async def test_a_core_elsewhere_is_reached_with_keys(pool, eventually, tmp_path):
    server, _ = make_curve(tmp_path)
    core = pool.core("a", tcp_endpoint="tcp://127.0.0.1:0", curve=server)
    files = {"engine_curve_key": tmp_path / "client.secret", "engine_curve_server": tmp_path / "core.public"}
    await pool.start(core.tcp_endpoint, **files)
    await eventually(lambda: len(pool.proxy.registry.ready()) == 1)
    assert await run(pool, "count-1") == list(range(5))
    assert {peer.key_name for peer in core._server.peers} == {"client"}


def test_settings_say_what_is_wrong_with_a_core(capsys, tmp_path):
    secret, public = new_key(tmp_path, "proxy")
    keys = ("--engine-curve-key", str(secret), "--engine-curve-server", str(public))
    assert parse_settings(["--backends", "tcp://10.0.0.1:50052", *keys]).engine_curve() is not None
    for arguments, words in (
        (["--backends", "tcp://10.0.0.1:50052"], "refused without CURVE keys"),
        (["--backends", "ipc://relative"], "absolute path"),
        (["--backends", "ipc:///run/a.ipc?kind=vllm"], "engine of ours"),
        (["--backends", "ipc:///run/a.ipc", *keys[:2]], "give both"),
    ):
        with pytest.raises(SystemExit):
            parse_settings(arguments)
        assert words in capsys.readouterr().err
    (spec,) = parse_specs("ipc:///run/a.ipc?weight=2")
    assert (spec.core, spec.http, spec.weight, spec.name) == (True, False, 2.0, "ipc:///run/a.ipc")
