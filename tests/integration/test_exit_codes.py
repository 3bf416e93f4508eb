"""What the exit statuses of the three services say; docs/processes.md has the table."""

from __future__ import annotations

import asyncio
import signal
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rhizome_testing.checkpoints import write_llama_checkpoint
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.gateway_process import GatewayProcess
from rhizome_testing.hash_core import token_request
from rhizome_testing.long_tests import takes_long
from rhizome_testing.processes import ProcessFixture
from rhizome_testing.proxy_process import ProxyProcess
from rhizome_testing.talking_engine import Hang, Say, TalkingEngine
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_client import GrpcEngineClient

LONG = "600"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
async def talking() -> AsyncIterator[TalkingEngine]:
    """An engine in this process whose answers never end."""
    async with TalkingEngine(script=lambda prompt: [Say("a"), Hang()]) as engine:
        yield engine


async def ended(process: ProcessFixture, timeout_s: float = 40.0) -> int:
    return await asyncio.to_thread(process.wait, timeout_s)


async def open_request(target: str) -> tuple[GrpcEngineClient, asyncio.Task[Any]]:
    """A request that is under way."""
    client = GrpcEngineClient(target, peer_name="test")
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in client.generate(token_request([1, 2, 3], 400)):
            begun.set()

    task = asyncio.create_task(read())
    await asyncio.wait_for(begun.wait(), 30)
    return client, task


async def interrupted_twice(process: ProcessFixture, line: str) -> int:
    process.signal(signal.SIGINT)
    await asyncio.to_thread(process.wait_for_line, line)
    assert process.running
    process.signal(signal.SIGINT)
    return await ended(process)


async def test_a_proxy(processes: ExitStack, talking: TalkingEngine, tmp_path: Path) -> None:
    async def start(*arguments: str) -> ProxyProcess:
        name = f"proxy{''.join(arguments)}"
        proxy = processes.enter_context(ProxyProcess([talking.target], tmp_path, *arguments, name=name))
        await asyncio.to_thread(proxy.wait_ready, 1)
        return proxy

    proxy = await start()
    proxy.signal(signal.SIGTERM)
    assert await ended(proxy) == 0
    proxy = await start("--drain-timeout-s", "0.2")
    client, task = await open_request(f"127.0.0.1:{proxy.port}")
    proxy.signal(signal.SIGTERM)
    assert await ended(proxy) == 1
    with pytest.raises(EngineError):
        await task
    await client.close()
    proxy = await start("--drain-timeout-s", LONG, "--drain-delay-s", LONG)
    client, task = await open_request(f"127.0.0.1:{proxy.port}")
    assert await interrupted_twice(proxy, "stopping") == 130
    with pytest.raises(EngineError):
        await task
    await client.close()


@takes_long
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_gateway(processes: ExitStack, talking: TalkingEngine, tmp_path: Path, workers: str) -> None:
    async def start(*arguments: str) -> GatewayProcess:
        gateway = processes.enter_context(
            GatewayProcess(talking.target, tmp_path, "--workers", workers, *arguments)
        )
        await asyncio.to_thread(gateway.wait_ready)
        return gateway

    def ask(url: str) -> bytes:
        body = b'{"model": "talking-model", "messages": [{"role": "user", "content": "Hi"}], "stream": true}'
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/v1/chat/completions", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    async def asks(gateway: GatewayProcess) -> asyncio.Task[bytes]:
        known = len(talking.submits)
        task = asyncio.create_task(asyncio.to_thread(ask, gateway.url))
        await asyncio.to_thread(gateway.wait_until, lambda: len(talking.submits) > known, "it asks")
        return task

    gateway = await start()
    gateway.signal(signal.SIGTERM)
    assert await ended(gateway) == 0
    gateway = await start("--graceful-shutdown-s", "0")
    asking = await asks(gateway)
    gateway.signal(signal.SIGTERM)
    assert await ended(gateway) == 1
    await asyncio.gather(asking, return_exceptions=True)
    gateway = await start("--graceful-shutdown-s", LONG)
    asking = await asks(gateway)
    assert await interrupted_twice(gateway, "Shutting down") == 130
    await asyncio.gather(asking, return_exceptions=True)
    gateway.assert_no_orphan()


def test_settings_that_are_wrong_are_2_and_a_taken_port_is_1(
    processes: ExitStack, checkpoint: Path, tmp_path: Path
) -> None:
    engine = processes.enter_context(EngineProcess(checkpoint, tmp_path))
    engine.wait_for_port(engine.port)
    taken = str(engine.port)
    model = ("--model", str(checkpoint))
    wrong = {
        "rhizome_engine": [*model, "--token-file", "nowhere"],
        "rhizome_proxy": ["--backends", "127.0.0.1:1", "--token-file", "nowhere"],
        "rhizome_gateway": ["--engine-token-file", "nowhere"],
    }
    public = {
        "rhizome_engine": [*model, "--admin-port", "1", "--admin-host", "0.0.0.0"],
        "rhizome_proxy": ["--backends", "127.0.0.1:1", "--admin-port", "1", "--admin-host", "0.0.0.0"],
    }
    busy = {
        "rhizome_engine": [*model, "--port", taken],
        "rhizome_proxy": ["--backends", "127.0.0.1:1", "--port", taken],
        "rhizome_gateway": ["--port", taken],
    }
    for status, cases in ((2, wrong), (2, public), (1, busy)):
        started = {
            module: processes.enter_context(
                ProcessFixture.module(module, arguments, log_dir=tmp_path, name=f"{module}-{index}-{status}")
            )
            for index, (module, arguments) in enumerate(cases.items())
        }
        for module, process in started.items():
            assert process.wait(60) == status, (module, process.output)
            assert "Traceback" not in process.output, process.output
    engine.signal(signal.SIGTERM)
    assert engine.wait(40) == 0
