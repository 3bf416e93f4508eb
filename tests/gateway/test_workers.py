"""Several gateway processes on one port: `--workers`."""

import asyncio
import hashlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from tests.gateway.conftest import RunningGateway, eventually

from rhizome.engine.v1.engine_service_pb2 import GetModelInfoRequest, GetModelInfoResponse
from rhizome_testing.ports import free_port
from rhizome_testing.talking_engine import Say, TalkingEngine

BODY = {"model": "talking-model", "messages": [{"role": "user", "content": "Hi"}]}


@asynccontextmanager
async def _workers(engine: TalkingEngine, *flags: str) -> AsyncIterator[tuple[psutil.Process, str]]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rhizome_gateway", "--workers", "2", "--port", str(port)),
        *("--engine", engine.target, "--log-level", "WARNING", *flags),
    )
    url = f"http://127.0.0.1:{port}"
    parent = psutil.Process(process.pid)

    async def serving() -> bool:
        if len(parent.children()) < 2:
            return False
        return all([await _ready(url) for _ in range(8)])

    try:
        await eventually(serving, within_s=30)
        yield parent, url
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _ready(url: str) -> bool:
    return await _is(url, "/ready", 200)


async def _is(url: str, path: str, status: int) -> bool:
    try:
        return (await _get(url, path)).status_code == status
    except httpx.HTTPError:
        return False


async def _get(url: str, path: str) -> httpx.Response:
    """On a new connection, which any worker may take."""
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        return await client.get(f"{url}{path}")


async def _ask(url: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        return await client.post(f"{url}/v1/chat/completions", json=BODY, headers=headers)


async def test_a_worker_that_dies_is_started_again_and_all_stop_together(engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("here")]
    async with _workers(engine) as (parent, url):
        first, second = parent.children()
        first.kill()

        async def is_replaced() -> bool:
            children = {child.pid for child in parent.children() if child.status() != "zombie"}
            return len(children) == 2 and first.pid not in children

        await eventually(is_replaced, within_s=20)
        assert second.is_running()

        async def answers() -> bool:
            return all([await _ready(url) for _ in range(8)])

        await eventually(answers, within_s=20)
        assert (await _ask(url)).json()["choices"][0]["message"]["content"] == "here"
        members = [parent, *parent.children()]
        parent.send_signal(signal.SIGTERM)
        await eventually(lambda: not any(m.is_running() and m.status() != "zombie" for m in members), 15)


class Reserved(TalkingEngine):
    """Says who it is while it is told to."""

    speaks: asyncio.Event

    async def GetModelInfo(  # noqa: N802 - named by the contract
        self, request: GetModelInfoRequest, context: Any
    ) -> GetModelInfoResponse:
        await self.speaks.wait()
        return await super().GetModelInfo(request, context)


async def test_a_worker_that_does_not_know_the_model_yet_sends_nobody_away() -> None:
    """One is ready, so the gateway is, and a client cannot choose its worker."""
    async with Reserved() as engine:
        engine.speaks = asyncio.Event()
        engine.speaks.set()
        async with _workers(engine) as (parent, url):
            engine.speaks.clear()
            first, second = parent.children()
            second.suspend()  # whatever comes is for the worker that replaces the first one
            try:
                first.kill()
                await eventually(lambda: _is(url, "/health", 200), within_s=20)
                assert await _is(url, "/ready", 503)
                asked = [asyncio.create_task(one) for one in (_ask(url), _get(url, "/v1/models"))]
                done, _ = await asyncio.wait(asked, timeout=0.5)
                assert not done, [task.result().text for task in done]
                engine.speaks.set()
                assert [(await task).status_code for task in asked] == [200, 200]
            finally:
                second.resume()


async def test_where_no_worker_knows_a_model_requests_are_refused_at_once(
    start_gateway: Callable[..., AbstractAsyncContextManager[RunningGateway]], tmp_path: Path
) -> None:
    port, seen = free_port(), tmp_path / "engine-seen"
    async with start_gateway(f"127.0.0.1:{port}", engine_seen=str(seen)) as gateway:
        started = time.monotonic()
        refused = await gateway.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        assert time.monotonic() - started < 5  # a wait would take 10
        seen.touch()
        asked = [
            asyncio.create_task(one)
            for one in (gateway.chat(), gateway.http.get("/v1/models"), gateway.http.get("/tokenizer_info"))
        ]
        async with TalkingEngine(address=f"127.0.0.1:{port}"):
            assert [(await task).status_code for task in asked] == [200, 200, 200]


async def test_the_worker_that_knows_the_model_tells_the_others(
    start_gateway: Callable[..., AbstractAsyncContextManager[RunningGateway]],
    engine: TalkingEngine,
    tmp_path: Path,
) -> None:
    seen = tmp_path / "engine-seen"
    async with start_gateway(engine.target, engine_seen=str(seen)) as gateway:
        await gateway.becomes_ready()
        assert seen.exists()


async def test_limits_and_counts_hold_over_all_workers(engine: TalkingEngine, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"sk-alice").hexdigest()
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[[keys]]\nname = "alice"\nsha256 = "{digest}"\nrequests_per_minute = 10\n')
    metrics_port = free_port()
    flags = ("--keys-file", str(keys), "--metrics-port", str(metrics_port))
    async with _workers(engine, *flags) as (_, url):
        key = {"authorization": "Bearer sk-alice"}
        started = time.monotonic()
        codes = [(await _ask(url, **key)).status_code for _ in range(14)]
        came_back = (time.monotonic() - started) * 10 / 60
        assert 10 <= codes.count(200) <= 10 + came_back and set(codes) == {200, 429}
        async with httpx.AsyncClient(trust_env=False, timeout=30, headers=key) as client:
            page = (await client.get(f"{url}/metrics")).text
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:  # and without a key
            aside = (await client.get(f"http://127.0.0.1:{metrics_port}/metrics")).text
        assert _chats(page) == _chats(aside) == 14


def _chats(page: str) -> float:
    """Chat requests that a page of metrics has counted."""
    name = "http_server_request_duration_seconds_count"
    lines = [line for line in page.splitlines() if line.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in lines if "/v1/chat/completions" in line)
