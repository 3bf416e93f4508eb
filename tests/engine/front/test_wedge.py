"""Cores that live and get nowhere: replaced; cores that are only slow: not."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from rhizome.engine.v1.generate_pb2 import FINISH_REASON_LENGTH, GenerateRequest
from rhizome_engine.core_pulse import read_pulse
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.hash_core import token_request
from rhizome_testing.long_tests import takes_long
from rhizome_testing.ports import free_port
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.probe import NOT_SERVING, SERVING, probe

StartEngine = Callable[..., EngineProcess]

STUCK_POLICY = '''
"""An eviction policy that never comes back once a file says so; somebody's own code in the engine's loop."""
import pathlib
import time

from rhizome_engine.kvcache.eviction.lru import LruPolicy

class Policy(LruPolicy):
    def add(self, node):
        while pathlib.Path(__file__).with_name("stuck").exists():
            time.sleep(0.05)
        super().add(node)
'''


@pytest.fixture
def own_engine(checkpoint: Path, tmp_path: Path) -> Iterator[StartEngine]:
    """An engine that finds modules of the test."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> EngineProcess:
            environment = {"XDG_RUNTIME_DIR": str(tmp_path), "PYTHONPATH": str(tmp_path)}
            engine = EngineProcess(checkpoint, tmp_path, *arguments, environment=environment)
            return stack.enter_context(engine)

        yield start


def request(max_tokens: int) -> GenerateRequest:
    return token_request(list(range(1, 41)), max_tokens)  # pages enough to be cached


def restarts(port: int, reason: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    wanted = f'rhizome_engine_core_restarts_total{{model="tiny",reason="{reason}"}} '
    return float(next(line.removeprefix(wanted) for line in lines if line.startswith(wanted)))


def core_folder(core: psutil.Process) -> Path:
    """Where its socket is."""
    arguments = core.cmdline()
    return Path(arguments[arguments.index("--core-endpoint") + 1].removeprefix("ipc://")).parent


async def ends_of(client: GrpcEngineClient, begun: asyncio.Event, max_tokens: int) -> list[EngineError]:
    """Every way in which one request ended; there must be one."""
    ends: list[EngineError] = []
    try:
        async for _ in client.generate(request(max_tokens)):
            begun.set()
    except EngineError as error:
        ends.append(error)
    return ends


async def test_a_frozen_core_is_doubted_then_replaced(start_engine: StartEngine) -> None:
    port = free_port()
    engine = start_engine("--wedge-timeout-s", "3", "--metrics-port", str(port))
    engine.wait_serving()
    core = engine.core()
    client = GrpcEngineClient(engine.target, peer_name="test")
    begun = asyncio.Event()
    asking = asyncio.create_task(ends_of(client, begun, 1900))
    await asyncio.wait_for(begun.wait(), 30)
    assert restarts(port, "wedged") == 0
    core.suspend()

    def is_doubted() -> bool:
        return probe(engine.target, ENGINE_SERVICE)[0] == NOT_SERVING

    await asyncio.to_thread(engine.wait_until, is_doubted, "health turns")
    ends = await asyncio.wait_for(asking, 60)
    assert [(end.code, end.reason) for end in ends] == [(grpc.StatusCode.ABORTED, "ENGINE_LOST")]
    await asyncio.to_thread(engine.wait_serving)
    assert not core.is_running() or core.status() == psutil.STATUS_ZOMBIE
    assert engine.core().pid != core.pid
    events = [event async for event in client.generate(request(3), timeout_s=30)]
    assert events[-1].finished.reason == FINISH_REASON_LENGTH
    await client.close()
    assert restarts(port, "wedged") == 1
    assert restarts(port, "killed") == 0
    assert "core is wedged" in engine.output


@takes_long
async def test_a_core_that_is_stuck_in_a_step_is_replaced_and_tells_where(
    own_engine: StartEngine, tmp_path: Path
) -> None:
    (tmp_path / "stuck_policy.py").write_text(STUCK_POLICY)
    engine = own_engine("--wedge-timeout-s", "2", "--eviction-policy", "stuck_policy:Policy")
    engine.wait_serving()
    first = engine.core()
    client = GrpcEngineClient(engine.target, peer_name="test")
    assert [event async for event in client.generate(request(2), timeout_s=30)]
    (tmp_path / "stuck").touch()
    ends = await asyncio.wait_for(ends_of(client, asyncio.Event(), 2), 60)
    assert [end.reason for end in ends] == ["ENGINE_LOST"]
    (tmp_path / "stuck").unlink()
    await asyncio.to_thread(engine.wait_serving)
    assert engine.core().pid != first.pid
    assert [event async for event in client.generate(request(2), timeout_s=30)]
    await client.close()
    assert 'stuck_policy.py", line 11 in add' in engine.output


@takes_long
async def test_a_core_that_is_slow_but_gets_on_is_left_alone(start_engine: StartEngine) -> None:
    """A machine so busy that the core runs for moments only, for several times the limit."""
    engine = start_engine("--wedge-timeout-s", "2")
    engine.wait_serving()
    core = engine.core()
    client = GrpcEngineClient(engine.target, peer_name="test")
    asking = asyncio.create_task(ends_of(client, asyncio.Event(), 1900))
    endpoint = f"ipc://{core_folder(core)}/core.ipc"
    for _ in range(8):
        core.suspend()
        await asyncio.sleep(0.6)
        before = read_pulse(endpoint)
        core.resume()
        await asyncio.to_thread(engine.wait_until, lambda: read_pulse(endpoint) != before, "it gets on")  # noqa: B023
    assert engine.core().pid == core.pid
    assert core.is_running()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await client.close()
    await asyncio.to_thread(engine.wait_serving)
    assert probe(engine.target, ENGINE_SERVICE)[0] == SERVING
    assert "wedged" not in engine.output
