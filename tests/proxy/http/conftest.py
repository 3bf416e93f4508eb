"""Simulated and scripted servers, the proxy's HTTP face before them, clients; on real sockets.

After each test nothing may be left behind: no request open at a backend, none that is not counted as ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import uvloop
from tests.relay.conftest import Backend, Peer, Script, eventually, post

from rhizome_launcher.simulate.flavours import FLAVOURS
from rhizome_launcher.simulate.http.server import HttpServer
from rhizome_launcher.simulate.physics import Physics
from rhizome_proxy.server import ProxyServer
from rhizome_proxy.settings import ProxySettings

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
CHATS = {"messages": [{"role": "user", "content": "Tell me a story."}]}


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    return {"uvloop": uvloop.new_event_loop}


class Answer:
    """A stream as its client got it.

    Attributes:
        events: what came behind `data:`, `[DONE]` as it is.
        whole: whether the body ended as it should.
    """

    def __init__(self, head: httpx.Response, body: bytes, *, whole: bool) -> None:
        self.status = head.status_code
        self.headers = head.headers
        self.body = body
        self.whole = whole
        self.events: list[Any] = [
            line[6:] if line[6:] == b"[DONE]" else orjson.loads(line[6:])
            for line in body.split(b"\n")
            if line.startswith(b"data: ")
        ]

    @property
    def done(self) -> bool:
        return bool(self.events) and self.events[-1] == b"[DONE]" and self.events.count(b"[DONE]") == 1

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [event for event in self.events if isinstance(event, dict)]

    @property
    def choices(self) -> list[dict[str, Any]]:
        return [choice for chunk in self.chunks for choice in chunk.get("choices") or ()]

    @property
    def text(self) -> str:
        said = [choice.get("delta", choice) for choice in self.choices]
        return "".join([one.get("content", one.get("text")) or "" for one in said])

    @property
    def roles(self) -> list[str]:
        return [choice["delta"]["role"] for choice in self.choices if "role" in choice.get("delta", {})]

    @property
    def reasons(self) -> list[str]:
        return [choice["finish_reason"] for choice in self.choices if choice["finish_reason"]]

    @property
    def ids(self) -> set[str]:
        return {chunk["id"] for chunk in self.chunks}

    @property
    def usage(self) -> dict[str, Any] | None:
        told = [chunk["usage"] for chunk in self.chunks if chunk.get("usage")]
        assert len(told) < 2
        return told[0] if told else None

    @property
    def error(self) -> dict[str, Any] | None:
        return next((chunk["error"] for chunk in self.chunks if "error" in chunk), None)


class Face:
    """A proxy with its HTTP face, and who asks it."""

    def __init__(self, proxy: ProxyServer) -> None:
        self.proxy = proxy
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{proxy.http_port}", timeout=60.0, trust_env=False
        )
        self.peers: list[Peer] = []

    async def ready(self, count: int) -> None:
        await eventually(lambda: sum(one.ready for one in self.proxy.registry) == count)

    def backend(self, server: Any) -> Any:
        return self.proxy.registry.get(url(server))

    async def post(self, path: str, document: dict[str, Any], **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(path, json=document, headers=named)

    async def stream(self, path: str, document: dict[str, Any], **headers: str) -> Answer:
        """Read all of a stream."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        asked = {"stream": True, **document}
        body, whole = b"", True
        async with self.client.stream("POST", path, json=asked, headers=named) as head:
            try:
                async for part in head.aiter_raw():
                    body += part
            except httpx.RemoteProtocolError:
                whole = False
        return Answer(head, body, whole=whole)

    async def peer(self) -> Peer:
        """A client that sends bytes."""
        self.peers.append(Peer(*await asyncio.open_connection("127.0.0.1", self.proxy.http_port)))
        return self.peers[-1]

    async def begin(self, path: str, document: dict[str, Any], *headers: bytes) -> Peer:
        """Send a request, and read nothing."""
        peer = await self.peer()
        await peer.send(post(orjson.dumps(document), *headers, path=path.encode()))
        return peer

    async def metrics(self) -> str:
        return (await self.client.get("/metrics")).text

    async def close(self) -> None:
        await self.client.aclose()
        for peer in self.peers:
            peer.writer.close()
        try:
            figures = self.proxy.router.http
            await eventually(lambda: figures.open == 0)
            await eventually(lambda: not any(one.in_flight or one.cuts for one in self.proxy.registry))
        finally:
            await self.proxy.stop(0.0)


class Bench:
    """What a test starts; everything is stopped with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: list[HttpServer] = []
        self.backends: list[Backend] = []
        self.faces: list[Face] = []

    async def simulate(self, kind: str = "vllm", *, port: int = 0, **options: Any) -> HttpServer:
        names = ("model", "context_tokens", "default_max_tokens")
        named = {name: options.pop(name) for name in names if name in options}
        laws = {"prefill_tokens_per_s": 1e6, "itl_base_ms": 1.0, "itl_per_request_ms": 0.0, **options}
        server = HttpServer(FLAVOURS[kind], Physics(**laws), **named)
        self.servers.append(server)
        await server.start(port=port)
        return server

    async def script(self, script: Script) -> Backend:
        """A server that lives and lists a model, and answers everything else by a script."""

        async def answer(call: Any) -> None:
            path = call.request.line.split()[1]
            if path == b"/v1/models":
                body = b'{"object": "list", "data": [{"id": "scripted", "owned_by": "vllm"}]}'
            elif path in (b"/health", b"/metrics", b"/load", b"/version"):
                body = b"{}"
            else:
                await script(call)
                return
            await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        self.backends.append(Backend(answer))
        await self.backends[-1].start()
        return self.backends[-1]

    async def proxy(self, *servers: Any, backends: str = "", ready: int = -1, **settings: Any) -> Face:
        listed = ",".join(filter(None, [backends, *map(url, servers)]))
        fields = {"poll_interval_s": 0.02, "port": 0, "http_port": 0, **settings}
        proxy = ProxyServer(ProxySettings(backends=listed, **fields))
        await proxy.start()
        self.faces.append(Face(proxy))
        await self.faces[-1].ready(len(proxy.registry) if ready < 0 else ready)
        return self.faces[-1]

    async def stop(self) -> None:
        # In any case all of it: a loop with a server that still listens cannot be closed.
        async with contextlib.AsyncExitStack() as scope:
            for backend in self.backends:
                scope.push_async_callback(backend.stop)
            for server in self.servers:
                scope.callback(server.stop)
            for face in self.faces:
                scope.push_async_callback(face.close)


def url(server: Any) -> str:
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture
async def bench(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Bench]:
    mishaps: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: mishaps.append(context))
    bench = Bench(tmp_path)
    yield bench
    await bench.stop()
    await asyncio.sleep(0)
    assert mishaps == []
    failed = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert failed == [], "the proxy must not stumble"


Reference = Callable[[str, dict[str, Any]], Awaitable[str]]


@pytest.fixture
async def expected(bench: Bench) -> AsyncIterator[Reference]:
    """What an undisturbed server answers to a request."""
    server = await bench.simulate()
    bench.servers.remove(server)

    async def ask(path: str, document: dict[str, Any]) -> str:
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.post(url(server) + path, json={**document, "stream": False})
        choice = answer.json()["choices"][0]
        return str(choice["message"]["content"] if path == CHAT else choice["text"])

    yield ask
    server.stop()
