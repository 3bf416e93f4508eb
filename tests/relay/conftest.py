"""Backends that follow a script, clients that send bytes, a proxy between them; on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import h11
import pytest
import uvloop
from tests.relay.static_proxy import CountingBudget, StaticPicker, StaticTarget

from rhizome_relay.relay import Relay
from rhizome_relay.server import HttpServer
from rhizome_relay.settings import RelaySettings

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET /v1/x HTTP/1.1\r\nHost: api.example\r\n\r\n"


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    return {"uvloop": uvloop.new_event_loop}


def post(body: bytes, *headers: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    return b"POST %b HTTP/1.1\r\nHost: api.example\r\nContent-Length: %d\r\n%b\r\n%b" % (
        path,
        len(body),
        lines,
        body,
    )


POLL_S = 0.002


async def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until `condition` holds.

    The time is counted in turns of the loop: it stands still while the machine does not run this process.
    """
    for _ in range(math.ceil(timeout_s / POLL_S)):
        if condition():
            return
        await asyncio.sleep(POLL_S)
    raise TimeoutError(f"this did not come true within {timeout_s:g} s")


@dataclass
class Received:
    """A request as a backend got it."""

    head: bytes
    body: bytes

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    def values(self, name: bytes) -> list[bytes]:
        pairs = [line.partition(b":") for line in self.head.split(b"\r\n")[1:] if line]
        return [value.strip() for key, _, value in pairs if key.lower() == name]


class Call:
    """One request at a backend, which the script answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Received) -> None:
        self.reader = reader
        self.writer = writer
        self.request = request

    async def send(self, data: bytes) -> None:
        if self.writer.is_closing():
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()

    async def event(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def until_closed(self) -> None:
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    def reset(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Call], Awaitable[None]]


async def say_ok(call: Call) -> None:
    await call.send(OK)


class Backend:
    """A server whose script answers each request; a script that closes the connection ends it."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.reads_body = True  # else the script does
        self.received: list[Received] = []
        self.accepted = 0
        self.open = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def leave(self) -> None:
        """Listen no longer."""
        if self._server is not None:
            self._server.close()

    async def stop(self) -> None:
        self.leave()
        self.close_connections()
        await eventually(lambda: not self.open)

    def close_connections(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.open += 1
        self._writers.add(writer)
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                request = Received(head, b"")
                if self.reads_body:
                    request.body = await _read_body(reader, request)
                self.received.append(request)
                await self.script(Call(reader, writer, request))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.close()


async def _read_body(reader: asyncio.StreamReader, request: Received) -> bytes:
    if request.values(b"transfer-encoding"):
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
        return body
    return await reader.readexactly(int((request.values(b"content-length") or [b"0"])[0]))


@dataclass
class Response:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    trailers: list[tuple[bytes, bytes]]

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]


class Peer:
    """A client that sends bytes; an independent parser reads the responses."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.interim: list[h11.InformationalResponse] = []
        self._rest = b""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read(self, method: str = "GET") -> Response:
        """One response.

        Raises:
            h11.RemoteProtocolError: it is malformed or cut short.
        """
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        parser.send(h11.EndOfMessage())
        if self._rest:  # nothing means the end
            parser.receive_data(self._rest)
        response = Response(0, [], b"", [])
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                try:
                    parser.receive_data(await asyncio.wait_for(self.reader.read(65536), 10))
                except ConnectionError:
                    raise h11.RemoteProtocolError("reset") from None
            elif isinstance(event, h11.InformationalResponse):
                self.interim.append(event)
            elif isinstance(event, h11.Response):
                response.status, response.headers = event.status_code, list(event.headers)
            elif isinstance(event, h11.Data):
                response.body += event.data
            else:
                assert isinstance(event, h11.EndOfMessage), event
                response.trailers = list(event.headers)
                self._rest = parser.trailing_data[0]
                return response

    async def ask(self, data: bytes, method: str = "GET") -> Response:
        await self.send(data)
        return await self.read(method)

    async def closed(self) -> bool:
        """Whether the proxy closes the connection and says nothing more."""
        try:
            return not self._rest and await asyncio.wait_for(self.reader.read(65536), 5) == b""
        except ConnectionError:
            return True


class Bed:
    """A proxy and what surrounds it."""

    def __init__(self, backends: list[Backend], settings: dict[str, Any], retries: int) -> None:
        self.backends = backends
        self.targets = [StaticTarget(backend.port, f"b{i}") for i, backend in enumerate(backends)]
        self.picker = StaticPicker(self.targets)
        settings = {"sweep_s": 0.01, "via": b"rhizome-test"} | settings
        self.relay = Relay(
            self.picker,
            CountingBudget(retries),
            RelaySettings(**settings),
            lambda path: self.local.get(path),
        )
        self.local: dict[bytes, Any] = {}
        self.server = HttpServer(self.relay)
        self._peers: list[Peer] = []

    @property
    def backend(self) -> Backend:
        return self.backends[0]

    async def peer(self, **options: Any) -> Peer:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port, **options)
        self._peers.append(Peer(reader, writer))
        return self._peers[-1]

    async def ask(self, data: bytes, method: str = "GET") -> Response:
        return await (await self.peer()).ask(data, method)

    async def close(self) -> None:
        for peer in self._peers:
            peer.writer.close()
        await self.server.stop(0.5)
        for backend in self.backends:
            await backend.stop()
        assert [target.leased for target in self.targets] == [0] * len(self.targets)


@pytest.fixture
async def bed() -> AsyncIterator[Callable[..., Awaitable[Bed]]]:
    """Starts a proxy in front of one backend for each script."""
    beds: list[Bed] = []
    mishaps: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: mishaps.append(context))

    async def start(*scripts: Script, retries: int = 1_000_000, **settings: Any) -> Bed:
        backends = [Backend(script) for script in scripts or (say_ok,)]
        for backend in backends:
            await backend.start()
        beds.append(Bed(backends, settings, retries))
        await beds[-1].server.start("127.0.0.1", 0)
        return beds[-1]

    yield start
    for running in beds:
        await running.close()
    assert mishaps == []
