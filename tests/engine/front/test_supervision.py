"""Fronts and cores that die, in every order, and what is left behind."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest

from rhizome.engine.v1.engine_admin_service_pb2 import DrainRequest
from rhizome.engine.v1.engine_admin_service_pb2_grpc import EngineAdminServiceStub
from rhizome.engine.v1.engine_service_pb2 import GetModelInfoRequest
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.generate_pb2 import FINISH_REASON_LENGTH, GenerateRequest
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.time_bounds import assert_within
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.errors import EngineError, from_rpc_error
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.probe import NOT_SERVING, SERVING, probe

StartEngine = Callable[..., EngineProcess]


def text_request(max_tokens: int) -> GenerateRequest:
    request = GenerateRequest(text="Hello")
    request.sampling.temperature = 0
    request.stop.max_tokens = max_tokens
    request.stop.ignore_eos = True
    return request


def token_request(max_tokens: int) -> GenerateRequest:
    request = text_request(max_tokens)
    request.token_ids.ids.extend([1, 2, 3])
    return request


async def instance_of(engine: EngineProcess) -> str:
    async with grpc.aio.insecure_channel(engine.target) as channel:
        info = await EngineServiceStub(channel).GetModelInfo(GetModelInfoRequest(), timeout=30)
        return str(info.instance_id)


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


def folders_in(runtime_dir: Path) -> list[Path]:
    return list(runtime_dir.glob("rhizome-engine-*"))


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


async def test_a_killed_core_is_started_again_and_the_front_stays(start_engine: StartEngine) -> None:
    engine = start_engine()
    engine.wait_serving()
    before, core = await instance_of(engine), engine.core()
    client = GrpcEngineClient(engine.target, peer_name="test")
    async with grpc.aio.insecure_channel(engine.target) as channel:
        on_connect = client.generate(token_request(1900))
        await anext(on_connect)
        on_generate = EngineServiceStub(channel).Generate(text_request(1900))
        await on_generate.read()
        raw = channel.stream_stream(f"/{ENGINE_SERVICE}/Connect")()
        await raw.write(b"")
        core.kill()
        # What had begun is aborted, what had not may be tried elsewhere.
        with pytest.raises(EngineError) as connect_error:
            async for _ in on_connect:
                pass
        assert (connect_error.value.code, connect_error.value.reason) == (
            grpc.StatusCode.ABORTED,
            "ENGINE_LOST",
        )
        with pytest.raises(grpc.aio.AioRpcError) as generate_error:
            while await on_generate.read():
                pass
        assert from_rpc_error(generate_error.value).reason == "ENGINE_LOST"
        assert generate_error.value.code() is grpc.StatusCode.ABORTED
        assert await raw.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await EngineServiceStub(channel).GetModelInfo(GetModelInfoRequest())
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert from_rpc_error(refused.value).reason in ("ENGINE_LOST", "MODEL_LOADING")
        assert probe(engine.target, ENGINE_SERVICE)[0] == NOT_SERVING
        assert probe(engine.target, "")[0] == SERVING
        engine.wait_serving()
        assert await instance_of(engine) != before
        events = [event async for event in client.generate(token_request(3), timeout_s=20)]
        assert events[-1].finished.reason == FINISH_REASON_LENGTH
    await client.close()


async def test_sigterm_lets_open_requests_finish_and_leaves_nothing_behind(
    start_engine: StartEngine, tmp_path: Path
) -> None:
    engine = start_engine()
    engine.wait_serving()
    core = engine.core()
    assert folders_in(tmp_path)
    client = GrpcEngineClient(engine.target, peer_name="test")
    async with grpc.aio.insecure_channel(engine.target) as channel:
        on_connect = client.generate(token_request(400))
        await anext(on_connect)
        on_generate = aiter(EngineServiceStub(channel).Generate(text_request(400)))
        await anext(on_generate)
        engine.signal(signal.SIGTERM)
        assert [e async for e in on_connect][-1].finished.reason == FINISH_REASON_LENGTH
        assert [e async for e in on_generate][-1].finished.reason == FINISH_REASON_LENGTH
    await client.close()
    assert engine.wait(40) == 0
    assert is_gone(core)
    assert not folders_in(tmp_path)


async def test_open_requests_are_cut_off_when_the_drain_time_is_over_and_the_status_says_so(
    start_engine: StartEngine,
) -> None:
    engine = start_engine("--drain-timeout-s", "0.2")
    engine.wait_serving()
    async with grpc.aio.insecure_channel(engine.target) as channel:
        call = EngineServiceStub(channel).Generate(text_request(2000))
        await call.read()
        engine.signal(signal.SIGTERM)
        assert await asyncio.to_thread(engine.wait, 30) == 1
    assert "1 requests were cut off" in engine.output


def test_a_second_sigint_stops_at_once(start_engine: StartEngine) -> None:
    def stop() -> float:
        engine = start_engine("--drain-timeout-s", "600")
        engine.wait_serving()
        core = engine.core()
        core.suspend()  # it would never finish draining
        engine.signal(signal.SIGINT)
        engine.wait_for_line("draining")
        assert engine.running
        engine.signal(signal.SIGINT)
        began = time.monotonic()
        try:
            assert engine.wait(40) == 130
        finally:
            if not is_gone(core):
                core.kill()
        assert is_gone(core)
        return time.monotonic() - began

    assert_within(4, stop)


async def test_draining_by_admin_turns_health_and_refuses(start_engine: StartEngine) -> None:
    engine = start_engine()
    engine.wait_serving()
    async with (
        grpc.aio.insecure_channel(engine.admin_target) as admin,
        grpc.aio.insecure_channel(engine.target) as channel,
    ):
        assert (await EngineAdminServiceStub(admin).Drain(DrainRequest())).cancelled_requests == 0
        assert probe(engine.target, ENGINE_SERVICE)[0] == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await EngineServiceStub(channel).Generate(text_request(3)).read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert from_rpc_error(caught.value).reason == "DRAINING"


async def test_a_core_without_its_front_ends_and_cleans_up(start_engine: StartEngine, tmp_path: Path) -> None:
    engine = start_engine("--orphan-grace-s", "0.5")
    engine.wait_serving()
    core = engine.core()
    engine.signal(signal.SIGKILL)
    wait_for(lambda: is_gone(core), "the core ends")
    wait_for(lambda: not folders_in(tmp_path), "its folder is removed")


async def test_a_new_front_adopts_the_core_and_loads_no_model(
    start_engine: StartEngine, tmp_path: Path
) -> None:
    endpoint = ("--core-endpoint", f"ipc://{tmp_path}/run/core.ipc", "--orphan-grace-s", "30")
    first = start_engine(*endpoint)
    first.wait_serving()
    core, instance = first.core(), await instance_of(first)
    first.signal(signal.SIGKILL)
    first.wait()
    second = start_engine(*endpoint)
    second.wait_serving()
    assert await instance_of(second) == instance
    assert not second.children()
    core.kill()  # an adopted core is watched too
    second.wait_until(lambda: probe(second.target, ENGINE_SERVICE)[0] == NOT_SERVING, "it noticed")
    second.wait_serving()
    assert await instance_of(second) != instance
    replacement = second.core()
    second.signal(signal.SIGTERM)
    assert second.wait() == 0
    assert is_gone(replacement)


async def test_a_core_with_other_settings_is_replaced(start_engine: StartEngine, tmp_path: Path) -> None:
    endpoint = ("--core-endpoint", f"ipc://{tmp_path}/run/core.ipc", "--orphan-grace-s", "30")
    first = start_engine(*endpoint)
    first.wait_serving()
    core = first.core()
    first.signal(signal.SIGKILL)
    second = start_engine(*endpoint, "--page-size", "32")
    second.wait_serving()
    assert is_gone(core)
    async with grpc.aio.insecure_channel(second.target) as channel:
        info = await EngineServiceStub(channel).GetModelInfo(GetModelInfoRequest())
        assert info.page_size == 32


def break_config(model: Path) -> None:
    (model / "config.json").write_text("{")


def remove_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def remove_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()


@pytest.mark.parametrize("damage", [break_config, remove_weights, remove_tokenizer])
def test_a_broken_checkpoint_ends_the_engine_with_a_reason(
    start_engine: StartEngine, checkpoint: Path, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    damage(broken)
    engine = start_engine(model=broken)
    assert engine.wait(60) == 2
    assert str(broken) in engine.output
    assert "Traceback" not in engine.output
    assert not list(tmp_path.glob("rhizome-engine-*"))


def test_a_taken_port_ends_the_engine_with_a_reason(start_engine: StartEngine) -> None:
    first = start_engine()
    first.wait_for_port(first.port)
    second = start_engine(port=first.port)
    assert second.wait(30) == 1
    assert "in use" in second.output
    assert not second.children()
