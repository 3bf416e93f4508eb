import asyncio
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
        self.http = httpx.AsyncClient(base_url=url, timeout=10, trust_env=False)
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


async def eventually(condition: Callable[[], Awaitable[bool] | bool], within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while True:
            result = condition()
            if result if isinstance(result, bool) else await result:
                return
            await asyncio.sleep(0.01)


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
