"""One scripted engine, and every way in which a client reaches one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import zmq

from rhizome.engine.v1.generate_pb2 import GenerateRequest, GenerateResponse, TokenIds
from rhizome_proxy.server import ProxyServer
from rhizome_proxy.settings import ProxySettings
from rhizome_testing.scripted_engine import ScriptedCore
from rhizome_testing.scripted_front import ScriptedFront
from rhizome_transport.curve import ClientCurve, ServerCurve, new_key
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_connection import FrameConnection
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.grpc_connection import GrpcDialer
from rhizome_transport.open_core import open_core
from rhizome_transport.zmq_client import ZmqEngineClient

DIRECT: Final = ("grpc", "zeromq", "zeromq-curve")
"""gRPC through a front, ZeroMQ over ipc, ZeroMQ over TCP with keys."""
THROUGH_PROXY: Final = ("proxy-grpc", "proxy-zeromq")
"""gRPC to a proxy, whose backend is a front over gRPC, or a core over ipc."""

_LIMIT_S: Final = 30.0


class Wired:
    """A client and the scripted core that it talks to.

    Attributes:
        client: in front of everything.
        core: behind everything; another one after `restart`.
        way: how they are connected.
    """

    def __init__(self, way: str, endpoint: str, folder: Path, connect_timeout_s: float) -> None:
        self.way = way
        self.connect_timeout_s = connect_timeout_s
        self._endpoint = endpoint
        self._server_curve: ServerCurve | None = None
        self._curve: ClientCurve | None = None
        tcp = ""
        if way == "zeromq-curve":
            tcp = "tcp://127.0.0.1:0"
            self._server_curve, self._curve = make_curve(folder)
        self.core = ScriptedCore(endpoint, tcp_endpoint=tcp, curve=self._server_curve)
        self._tcp = self.core.tcp_endpoint
        self.target = self._tcp or endpoint
        self.front: ScriptedFront | None = None
        self._proxy: ProxyServer | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.client: GrpcEngineClient | ZmqEngineClient

    async def start(self) -> None:
        """Start what is between the core and the client, and make the client."""
        if self.way in ("grpc", "proxy-grpc"):
            self.front = ScriptedFront(self._endpoint)
            self.target = await self.front.start()
        if self.way in THROUGH_PROXY:
            options: dict[str, Any] = {"resume_wait_s": 0.0, "poll_interval_s": 0.05, "poll_timeout_s": 5.0}
            self._proxy = ProxyServer(ProxySettings(backends=self.target, port=0, **options))
            self.target = f"127.0.0.1:{await self._proxy.start()}"
            async with asyncio.timeout(_LIMIT_S):
                while not self._proxy.registry.ready():  # noqa: ASYNC110 - the pool changes as it likes
                    await asyncio.sleep(0.01)
        self.client = self.new_client()

    def new_client(self) -> GrpcEngineClient | ZmqEngineClient:
        """Another client."""
        timeout_s = self.connect_timeout_s
        if self.way in ("zeromq", "zeromq-curve"):
            return ZmqEngineClient(
                self.target, peer_name="test", connect_timeout_s=timeout_s, curve=self._curve
            )
        return GrpcEngineClient(self.target, peer_name="test", connect_timeout_s=timeout_s)

    async def connect(self) -> FrameConnection:
        """A bare connection, for who wants to behave badly."""
        if self.way in ("zeromq", "zeromq-curve"):
            return open_core(self._context, self.target, curve=self._curve)
        return await GrpcDialer(self.target)()

    def restart(self, instance_id: str) -> None:
        """Start the core anew where it was."""
        self.core.stop()
        self.core = ScriptedCore(
            self._endpoint, instance_id=instance_id, tcp_endpoint=self._tcp, curve=self._server_curve
        )

    async def run(self, request: GenerateRequest) -> list[GenerateResponse]:
        """All events of a request, which is sent again for as long as nobody takes it."""
        async with asyncio.timeout(_LIMIT_S):
            while True:
                try:
                    return [event async for event in self.client.generate(request)]
                except EngineError as error:
                    if error.code is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Stop everything, the client first."""
        await self.client.close()
        self._context.destroy(linger=0)
        if self._proxy is not None:
            await self._proxy.stop(0.0)
        if self.front is not None:
            await self.front.stop()
        self.core.stop()


@asynccontextmanager
async def wire(
    way: str, endpoint: str, folder: Path, connect_timeout_s: float = 20.0
) -> AsyncIterator[Wired]:
    """A scripted engine reached in one of the ways."""
    wired = Wired(way, endpoint, folder, connect_timeout_s)
    await wired.start()
    try:
        yield wired
    finally:
        await wired.stop()


def make_curve(folder: Path) -> tuple[ServerCurve, ClientCurve]:
    """Keys of a core and of one client that it lets in, made in `folder`."""
    core_key, core_public = new_key(folder, "core")
    client_key, client_public = new_key(folder, "client")
    client = ClientCurve.from_files(client_key, core_public)
    assert client is not None
    return ServerCurve(core_key, client_public), client


def ask(request_id: str, tokens: int = 5) -> GenerateRequest:
    """A request that the script's `count` echoes."""
    return GenerateRequest(request_id=request_id, token_ids=TokenIds(ids=range(tokens)))


def kinds(events: list[GenerateResponse]) -> list[str | None]:
    """What events they are."""
    return [event.WhichOneof("event") for event in events]


def tokens_of(events: list[GenerateResponse]) -> list[int]:
    """All token ids in them."""
    return [token for event in events for token in event.delta.token_ids]
