"""A peer that speaks frames, engines, a proxy between them; on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.proxy.scripted_engine import (
    Script,
    ScriptedEngine,
    answer,
    hold,
    refuse,
    start_and_hold,
)

from rhizome.common.v1.common_pb2 import TraceContext
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.frames_pb2 import (
    Cancel,
    ClientFrame,
    Credit,
    EngineFrame,
    Hello,
    Ping,
    RequestEvent,
    Submit,
)
from rhizome.engine.v1.generate_pb2 import (
    GenerateRequest,
    TokenIds,
)
from rhizome_proxy.server import ProxyServer
from rhizome_proxy.settings import ProxySettings
from rhizome_testing.request_events import delta_event, finished_event, refused_event, started_event
from rhizome_transport.channel import ENGINE_SERVICE, PROTOCOL_VERSION
from rhizome_transport.errors import EngineError


async def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - whatever the condition looks at
            await asyncio.sleep(0.005)


class Peer:
    """A gateway as the proxy sees it: one Connect stream, frames kept as bytes."""

    def __init__(self, address: str, credit: int) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self.call: Any = self._channel.stream_stream(f"/{ENGINE_SERVICE}/Connect")()
        self._credit = credit
        self.frames: list[bytes] = []
        self._reader: asyncio.Task[None] | None = None

    async def open(self) -> Peer:
        await self.send(
            hello=Hello(protocol_version=PROTOCOL_VERSION, peer_name="tester", initial_credit=self._credit)
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def send(self, **frame: Any) -> None:
        await self.call.write(ClientFrame(**frame).SerializeToString())

    async def submit(self, request_id: str, model: str = "", **fields: Any) -> None:
        request = GenerateRequest(request_id=request_id, model=model, token_ids=TokenIds(ids=[1, 2, 3]))
        await self.send(submit=Submit(request=request, **fields))

    async def cancel(self, request_id: str) -> None:
        await self.send(cancel=Cancel(request_id=request_id))

    async def grant(self, frames: int) -> None:
        await self.send(credit=Credit(frames=frames))

    async def ping(self, nonce: int) -> None:
        await self.send(ping=Ping(nonce=nonce))

    @property
    def parsed(self) -> list[EngineFrame]:
        return [EngineFrame.FromString(frame) for frame in self.frames]

    def events(self, request_id: str) -> list[RequestEvent]:
        return [event for frame in self.parsed for event in frame.events if event.request_id == request_id]

    def final(self, request_id: str) -> RequestEvent | None:
        return next((event for event in self.events(request_id) if event.final), None)

    async def wait_events(self, request_id: str, count: int) -> list[RequestEvent]:
        await eventually(lambda: len(self.events(request_id)) >= count)
        return self.events(request_id)

    async def outcome(self, request_id: str) -> RequestEvent:
        """The final event."""
        await eventually(lambda: self.final(request_id) is not None)
        final = self.final(request_id)
        assert final is not None
        return final

    async def error(self, request_id: str) -> EngineError:
        """What the request failed with."""
        final = await self.outcome(request_id)
        assert final.HasField("status"), final
        return EngineError.from_status(final.status)

    def tokens(self, request_id: str) -> tuple[int, ...]:
        return tuple(i for event in self.events(request_id) for i in event.response.delta.token_ids)

    async def close(self) -> None:
        """Vanish."""
        self.call.cancel()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._channel.close()

    async def _read(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            while isinstance(frame := await self.call.read(), bytes):
                self.frames.append(frame)


class Cluster:
    """What a test starts; everything is stopped with it."""

    def __init__(self) -> None:
        self.engines: list[ScriptedEngine] = []
        self._proxies: list[ProxyServer] = []
        self._peers: list[Peer] = []
        self._channels: list[grpc.aio.Channel] = []

    async def engine(self, script: Script = answer, **fields: Any) -> ScriptedEngine:
        engine = ScriptedEngine(script=script, **fields)
        await engine.start()
        self.engines.append(engine)
        return engine

    async def proxy(self, *engines: ScriptedEngine, backends: str = "", **settings: Any) -> ProxyServer:
        backends = backends or ",".join(engine.address for engine in engines)
        fields = {"poll_interval_s": 0.02, "port": 0, **settings}
        proxy = ProxyServer(ProxySettings(backends=backends, **fields))
        self._proxies.append(proxy)
        await proxy.start()
        # A proxy waits only so long for its first checks, which take longer where the machine is busy.
        serving = [engine.address for engine in engines if engine.serving]
        await eventually(lambda: all(proxy.registry.get(address).ready for address in serving))
        return proxy

    async def peer(self, proxy: ProxyServer, credit: int = 1000) -> Peer:
        return await self.peer_at(proxy.port, credit)

    async def peer_at(self, port: int, credit: int = 1000) -> Peer:
        peer = await Peer(f"127.0.0.1:{port}", credit).open()
        self._peers.append(peer)
        return peer

    def channel(self, proxy: ProxyServer) -> grpc.aio.Channel:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{proxy.port}")
        self._channels.append(channel)
        return channel

    def stub(self, proxy: ProxyServer) -> Any:
        return EngineServiceStub(self.channel(proxy))

    async def stop(self) -> None:
        for peer in self._peers:
            await peer.close()
        for channel in self._channels:
            await channel.close()
        for proxy in self._proxies:
            await proxy.stop(0.0)
        for engine in self.engines:
            await engine.kill()


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    yield cluster
    await cluster.stop()


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Awaitable[None]]:
    return eventually


@pytest.fixture(name="script")
def _script() -> Any:
    """What scripts are made of."""
    return SimpleNamespace(
        started=started_event,
        delta=delta_event,
        finished=finished_event,
        refused=refused_event,
        answer=answer,
        refuse=refuse,
        full=EngineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", retry_after_s=1.0),
        hold=hold,
        start_and_hold=start_and_hold,
    )


@pytest.fixture
def trace() -> TraceContext:
    return TraceContext(traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01", tracestate="x=y")
