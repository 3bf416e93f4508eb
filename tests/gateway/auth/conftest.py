import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp

Serve = Callable[[ASGIApp], AbstractAsyncContextManager[httpx.AsyncClient]]


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    config = uvicorn.Config(app, log_config=None, lifespan="off", http="httptools", ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server._serve(sockets=[listener]))
        async with asyncio.timeout(20):
            while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.005)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
                yield client
        finally:
            server.should_exit = True
            await serving


@pytest.fixture
def serve() -> Serve:
    return served


def toml_value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def keys_text(**keys: dict[str, Any]) -> str:
    """One table for each name; the key of alice is `sk-alice`."""
    text = ""
    for name, fields in keys.items():
        sha256 = hashlib.sha256(f"sk-{name}".encode()).hexdigest()
        lines = {"name": name, "sha256": sha256} | fields
        text += "[[keys]]\n" + "".join(f"{field} = {toml_value(value)}\n" for field, value in lines.items())
    return text


WriteKeys = Callable[..., Path]


@pytest.fixture
def write_keys(tmp_path: Path) -> WriteKeys:
    def write(**keys: dict[str, Any]) -> Path:
        path = tmp_path / "keys.toml"
        path.write_text(keys_text(**keys))
        return path

    return write
