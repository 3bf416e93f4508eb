"""A relay for clients in other processes, so that this process sees, and checks, what they get."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from starlette.types import Receive, Scope, Send

_HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"host"}


class _Relay:
    """An ASGI application that passes everything on, byte for byte, and hangs up when its client does."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, trust_env=False, timeout=60)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        passing = asyncio.create_task(self._pass(scope, body, send))
        gone = asyncio.create_task(self._gone(receive))
        await asyncio.wait({passing, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not passing.done():
            passing.cancel()
        await asyncio.gather(passing, gone, return_exceptions=True)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self._client:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _pass(self, scope: Scope, body: bytes, send: Send) -> None:
        headers = [header for header in scope["headers"] if header[0] not in _HOP_BY_HOP]
        path = scope["raw_path"].decode()
        async with self._client.stream(scope["method"], path, headers=headers, content=body) as answer:
            kept = [header for header in answer.headers.raw if header[0].lower() not in _HOP_BY_HOP]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
            async for part in answer.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass


@contextmanager
def watched_relay(url: str) -> Iterator[str]:
    """Relay to `url` from an address of its own, the value of the block.

    At the end of the block all that went through it has been seen by `openai_watch`.
    """
    server = uvicorn.Server(
        uvicorn.Config(
            _Relay(url),
            lifespan="on",
            log_level="warning",
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=5,
        )
    )
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],), name="relay", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
