"""An engine as other people's routers see it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.ports import free_ports

LONG_S = 60.0

DEMO = Path(__file__).parents[2] / "models" / "demo"


@pytest.fixture(scope="session")
def metrics_url() -> str:
    """Where the shared engine serves its metrics."""
    (port,) = free_ports(1)
    return f"http://127.0.0.1:{port}/metrics"


@pytest.fixture(scope="session")
def engine(metrics_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """One engine for all tests that leave it as it was."""
    pytest.importorskip("smg_grpc_proto", reason="pip install smg-grpc-proto")
    port = metrics_url.rpartition(":")[2].partition("/")[0]
    options = ("--vllm-grpc", "on", "--metrics-port", port, "--metrics-vllm-names", "true")
    with EngineProcess(DEMO, tmp_path_factory.mktemp("engine"), *options) as one:
        one.wait_serving()
        yield one


@pytest.fixture
async def channel(engine: EngineProcess) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(engine.target) as one:
        yield one


async def eventually(condition: Callable[[], bool], timeout_s: float = LONG_S) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.02)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    """Speaks vLLM's contract."""
    from smg_grpc_proto import vllm_engine_pb2_grpc

    return vllm_engine_pb2_grpc.VllmEngineStub(channel)


@pytest.fixture
def native(channel: grpc.aio.Channel) -> Any:
    """Speaks ours."""
    return EngineServiceStub(channel)
