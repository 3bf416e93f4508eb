"""Rhizome's own engine cores, reached over ZeroMQ without their fronts: on this host, or with keys elsewhere.

A core speaks frames. `connect` hands them through as they are; the other methods travel as `Call` frames on a
connection of the proxy's own. Text is the business of fronts and gateways, so `Tokenize`, `Detokenize` and
`Generate` with text cannot be had here.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import grpc
import zmq
from google.protobuf.message import DecodeError

from rhizome.common.v1.common_pb2 import TraceContext
from rhizome.engine.v1 import engine_service_pb2 as engine_pb2
from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome_backends.base import Metadata, Probe
from rhizome_backends.rhizome_events import follow_engine
from rhizome_routing.prefix.index import PrefixIndex
from rhizome_transport.core_connection import CoreConnection
from rhizome_transport.curve import ClientCurve
from rhizome_transport.dealer import RELAYED_IDENTITY_PREFIX
from rhizome_transport.errors import EngineError
from rhizome_transport.kv_watch import watch_kv_events
from rhizome_transport.open_core import open_core
from rhizome_transport.zmq_client import ZmqEngineClient

_PEER_NAME: Final = "rhizome-proxy"
_MAX_SOCKETS: Final = 16_384
"""Three per stream: the connection, and both ends of its monitor. ZeroMQ's own limit is 1,023."""


class RhizomeCore:
    """One core; see `base.Engine`.

    Args:
        endpoint: `ipc:///path`, or `tcp://host:port` with keys.
        curve: keys for TCP.

    Raises:
        ValueError: the endpoint is wrong, or needs keys.
    """

    kind = "rhizome"

    def __init__(self, endpoint: str, *, curve: ClientCurve | None = None) -> None:
        self._client = ZmqEngineClient(endpoint, peer_name=_PEER_NAME, curve=curve)
        self._curve = curve
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
        self._models: tuple[str, ...] = ()
        self._instance_id = ""

    async def probe(self, timeout_s: float) -> Probe:
        """Ask for the load, and for the model's name when the core is a new one; one that loads is silent."""
        request = engine_pb2.GetLoadRequest().SerializeToString()
        answer = (await self._client.call("GetLoad", request, timeout_s=timeout_s))[0]
        told = engine_pb2.GetLoadResponse.FromString(answer)
        if told.draining:
            return Probe(serving=False, reason="it is draining")
        if not self._models or told.load.instance_id != self._instance_id:
            model = (await self._client.model_info()).model
            self._models, self._instance_id = ((model,) if model else ()), told.load.instance_id
        return Probe(serving=True, load=told.load, models=self._models)

    async def connect(self) -> CoreConnection:
        """Open a connection on behalf of one peer."""
        identity = RELAYED_IDENTITY_PREFIX + uuid.uuid4().bytes
        try:
            return open_core(self._context, self._client.endpoint, identity=identity, curve=self._curve)
        except zmq.ZMQError:
            raise EngineError(grpc.StatusCode.UNAVAILABLE, "its connection was closed") from None

    def call(
        self, method: str, request: bytes, *, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> CoreCall:
        """Call any other method."""
        return CoreCall(self._answers(method, request, timeout_s, metadata))

    async def follow(self, index: PrefixIndex, name: str) -> None:
        """Read its KV events."""
        await follow_engine(index, name, self.call)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()
        self._context.destroy(linger=0)

    async def _answers(
        self, method: str, request: bytes, timeout_s: float | None, metadata: Metadata
    ) -> AsyncGenerator[bytes, None]:
        client = self._client
        trace = TraceContext()
        for key, value in metadata:
            if key in ("traceparent", "tracestate"):
                setattr(trace, key, value)
        match method:
            case "Generate":
                generation = GenerateRequest.FromString(request)
                events = client.generate(generation, timeout_s=timeout_s, trace=trace)
                async with aclosing(events):
                    async for event in events:
                        yield event.SerializeToString()
            case "Embed":
                # Parts of one message.
                yield b"".join(await client.call(method, request, timeout_s=timeout_s, trace=trace))
            case "WatchKvEvents":
                changes = watch_kv_events(lambda start: client.call(method, start, timeout_s=None), request)
                async with aclosing(changes):
                    async for change in changes:
                        yield change
            case "GetCacheTree":
                asked = engine_pb2.GetCacheTreeRequest.FromString(request)
                asked.with_token_ids = False  # who asks a proxy is not told anybody's tokens
                payload = asked.SerializeToString()
                for answer in await client.call(method, payload, timeout_s=timeout_s, trace=trace):
                    yield answer
            case _:
                for answer in await client.call(method, request, timeout_s=timeout_s, trace=trace):
                    yield answer


class CoreCall:
    """The answers to one call; see `base.EngineCall`. Nothing is asked for before it was read."""

    def __init__(self, answers: AsyncGenerator[bytes, None]) -> None:
        self._arrived: deque[bytes] = deque()
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._failure: EngineError | None = None
        self._task = asyncio.create_task(self._run(answers))
        self._task.add_done_callback(lambda _: self._news.set())

    async def read(self) -> bytes | None:
        """The next answer; None after the last.

        Raises:
            EngineError: how the call ended, where it did not end well.
        """
        while not self._arrived:
            if self._task.done():
                if self._failure is not None:
                    raise self._failure
                return None
            self._room.set()
            self._news.clear()
            await self._news.wait()
        return self._arrived.popleft()

    def cancel(self) -> bool:
        """Give the call up, in the core too."""
        return self._task.cancel()

    async def _run(self, answers: AsyncGenerator[bytes, None]) -> None:
        try:
            async with aclosing(answers):
                await self._room.wait()
                async for answer in answers:
                    self._arrived.append(answer)
                    self._room.clear()
                    self._news.set()
                    await self._room.wait()
        except EngineError as error:
            self._failure = error
        except DecodeError as error:
            self._failure = EngineError(
                grpc.StatusCode.INVALID_ARGUMENT, f"the request cannot be read: {error}"
            )
        except asyncio.CancelledError:
            self._failure = EngineError(grpc.StatusCode.UNAVAILABLE, "its connection was closed")
            raise
