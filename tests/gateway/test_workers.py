"""Several gateway processes on one port: `--workers`."""

import asyncio
import hashlib
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
from tests.gateway.conftest import eventually

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
    """On a new connection, which any worker may take."""
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            return (await client.get(f"{url}/ready")).status_code == 200
    except httpx.HTTPError:
        return False


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
