"""Every way in which a core ends or a step fails: what its requests are told, and what comes after."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import grpc

from rhizome.engine.v1.generate_pb2 import FINISH_REASON_LENGTH
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.hash_core import token_request
from rhizome_testing.long_tests import takes_long
from rhizome_testing.ports import free_port
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_client import GrpcEngineClient

FAILING_RUNNER = '''
"""An eviction policy whose module makes steps fail in the way that a file names."""
import pathlib

from rhizome_engine.kvcache.eviction.lru import LruPolicy as Policy
from rhizome_engine.runner.model_runner import ModelRunner

ERRORS = {
    "memory": MemoryError(),
    "device": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "bug": RuntimeError("shapes do not fit"),
    "wrong value": ValueError("shapes do not fit"),
}
launch = ModelRunner.launch

def launch_or_fail(self, batch):
    wish = pathlib.Path(__file__).with_name("wish")
    if wish.exists():
        raise ERRORS[wish.read_text()]
    return launch(self, batch)

ModelRunner.launch = launch_or_fail
'''


def said(engine: EngineProcess, words: str, times: int) -> bool:
    return engine.output.count(words) == times


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return str(answer.read().decode())


async def end_of(client: GrpcEngineClient) -> tuple[grpc.StatusCode, str] | int:
    """How a request ended: its error, or its finish reason."""
    try:
        events = [event async for event in client.generate(token_request([1, 2, 3], 3), timeout_s=30)]
    except EngineError as error:
        return error.code, error.reason
    return events[-1].finished.reason


@takes_long
async def test_each_failure_costs_what_it_must_and_is_counted_by_its_reason(
    checkpoint: Path, tmp_path: Path, until: Callable[..., Awaitable[None]]
) -> None:
    (tmp_path / "failing.py").write_text(FAILING_RUNNER)
    wish, metrics_port = tmp_path / "wish", free_port()
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    arguments = ("--eviction-policy", "failing:Policy", "--metrics-port", str(metrics_port))
    with EngineProcess(checkpoint, tmp_path, *arguments, environment=environment) as engine:
        await asyncio.to_thread(engine.wait_serving)
        client = GrpcEngineClient(engine.target, peer_name="test")
        first = engine.core()

        wish.write_text("memory")
        assert await end_of(client) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
        wish.unlink()
        assert await end_of(client) == FINISH_REASON_LENGTH
        assert engine.core().pid == first.pid

        wish.write_text("device")  # the request had begun: it can go on elsewhere
        assert await end_of(client) in [
            (grpc.StatusCode.ABORTED, "ENGINE_LOST"),
            (grpc.StatusCode.UNAVAILABLE, "ENGINE_LOST"),
        ]
        wish.unlink()
        await until(engine, lambda: "core device_lost (status 3)" in engine.output)
        await asyncio.to_thread(engine.wait_serving)
        assert engine.core().pid != first.pid

        for crashes, bug in enumerate(("bug", "wrong value"), start=1):
            wish.write_text(bug)
            ends = [await end_of(client) for _ in range(3)]
            assert [end[0] for end in ends[:2] if isinstance(end, tuple)] == [grpc.StatusCode.INTERNAL] * 2
            assert isinstance(ends[2], tuple) and ends[2][1] == "ENGINE_LOST"
            wish.unlink()
            await until(engine, partial(said, engine, "core crashed (status 1)", crashes))
            await asyncio.to_thread(engine.wait_serving)

        engine.core().kill()
        await until(engine, lambda: "core killed (status -9)" in engine.output)
        assert "see dmesg" in engine.output
        await asyncio.to_thread(engine.wait_serving)
        assert await end_of(client) == FINISH_REASON_LENGTH
        await client.close()
        text = await asyncio.to_thread(scraped, metrics_port)
    for reason, count in {"device_lost": 1.0, "crashed": 2.0, "killed": 1.0, "wedged": 0.0}.items():
        assert f'rhizome_engine_core_restarts_total{{model="tiny",reason="{reason}"}} {count}\n' in text


@takes_long
def test_a_core_is_started_again_ever_more_slowly(start_engine: Callable[..., EngineProcess]) -> None:
    engine = start_engine()
    for wait_s in ("0.5", "1.0", "2.0"):
        engine.core().kill()
        engine.wait_for_line(f"core killed \\(status -9\\); starting it again in {wait_s} s")
