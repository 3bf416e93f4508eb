import asyncio
import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import openai
import pytest

from rhizome_gateway.__main__ import GatewayServer
from rhizome_gateway.app import Gateway
from rhizome_gateway.settings import GatewaySettings
from rhizome_testing.openai_watch import every_answer_is_openais  # noqa: F401  (a fixture for all)
from rhizome_testing.talking_engine import TalkingEngine


class RunningGateway:
    """A gateway on a real socket, and clients for it."""

    def __init__(self, server: GatewayServer, url: str) -> None:
        self.server = server
        self.url = url
        self.http = httpx.AsyncClient(base_url=url, timeout=30, trust_env=False)
        self.openai = openai.AsyncOpenAI(
            base_url=f"{url}/v1",
            api_key="none",
            max_retries=0,
            http_client=httpx.AsyncClient(trust_env=False),
        )

    async def chat(self, **fields: Any) -> httpx.Response:
        body = {"model": "talking-model", "messages": [{"role": "user", "content": "Hi"}]} | fields
        return await self.http.post("/v1/chat/completions", json=body)

    async def becomes_ready(self) -> None:
        async def is_ready() -> bool:
            return (await self.http.get("/ready")).status_code == 200

        await eventually(is_ready)


async def read_stream(
    gateway: RunningGateway, path: str, body: dict[str, Any], mark: str, times: int, then: asyncio.Event
) -> str:
    """The text of a stream; sets `then` when `mark` has come so many times."""
    text = ""
    async with gateway.http.stream("POST", path, json=body | {"stream": True}) as answer:
        async for piece in answer.aiter_text():
            text += piece
            if text.count(mark) >= times:
                then.set()
    return text


POLL_S = 0.01


async def eventually(condition: Callable[[], Awaitable[bool] | bool], within_s: float = 20.0) -> None:
    """Wait until `condition` holds.

    The time is counted in turns of the loop: it stands still while the machine does not run this process.
    """
    for _ in range(math.ceil(within_s / POLL_S)):
        result = condition()
        if result if isinstance(result, bool) else await result:
            return
        await asyncio.sleep(POLL_S)
    raise TimeoutError(f"this did not come true within {within_s:g} s")


@asynccontextmanager
async def running_gateway(engine_target: str, **settings: Any) -> AsyncIterator[RunningGateway]:
    configured = GatewaySettings(engine=engine_target, model_refresh_s=0.2, **settings)
    server = GatewayServer(Gateway(configured), configured)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server._serve(sockets=[listener]))
        await eventually(lambda: server.started or serving.done())
        running = RunningGateway(server, f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            yield running
        finally:
            await running.http.aclose()
            await running.openai.close()
            server.should_exit = True
            await serving


@pytest.fixture
async def engine() -> AsyncIterator[TalkingEngine]:
    async with TalkingEngine() as engine:
        yield engine


StartGateway = Callable[..., AbstractAsyncContextManager[RunningGateway]]


@pytest.fixture
def start_gateway() -> StartGateway:
    return running_gateway


@pytest.fixture
async def gateway(engine: TalkingEngine) -> AsyncIterator[RunningGateway]:
    async with running_gateway(engine.target) as gateway:
        await gateway.becomes_ready()
        yield gateway
