"""What the pool and the relays need from a server, whatever kind it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rhizome.engine.v1.load_pb2 import Load
from rhizome_relay.picker import Origin
from rhizome_routing.prefix.index import PrefixIndex
from rhizome_transport.frame_connection import FrameConnection

Metadata = Sequence[tuple[str, str]]


class EngineCall(Protocol):
    """The answers to one call of an engine's, as `grpc.aio` has them.

    Its methods raise `grpc.aio.AioRpcError` or `EngineError`, which `from_rpc_error` makes one.
    """

    async def read(self) -> Any:
        """The next serialised answer; what is no bytes is the end."""
        ...

    def cancel(self) -> bool:
        """Give it up."""
        ...


@dataclass(frozen=True, slots=True)
class Probe:
    """What one check found.

    Attributes:
        serving: whether the server takes requests.
        reason: why it does not, for people.
        load: how busy it is; `None` when it does not say, which never means idle.
        models: what it serves; empty when it does not say.
    """

    serving: bool
    reason: str = ""
    load: Load | None = None
    models: tuple[str, ...] = ()


class Server(Protocol):
    """A server behind one address.

    Attributes:
        kind: name of the kind, such as `rhizome`.
    """

    kind: str

    async def probe(self, timeout_s: float) -> Probe:
        """Check the server.

        Raises:
            EngineError: it cannot be reached (UNAVAILABLE) or did not answer in time (DEADLINE_EXCEEDED).
        """
        ...

    async def follow(self, index: PrefixIndex, name: str) -> None:
        """Keep the view of backend `name` as exact as what the server tells of its cache, until cancelled."""
        ...

    async def close(self) -> None:
        """Release the connection; what is open on it breaks."""
        ...


class Engine(Server, Protocol):
    """A server that speaks EngineService; the gRPC face uses these."""

    async def connect(self) -> FrameConnection:
        """Open a connection for serialised ClientFrames to it and serialised EngineFrames from it.

        Raises:
            EngineError: UNAVAILABLE, it cannot be reached.
        """
        ...

    def call(
        self, method: str, request: bytes, *, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> EngineCall:
        """Call a method of EngineService with one serialised request; a unary method answers one message."""
        ...


class HttpServer(Server, Protocol):
    """A server that speaks an HTTP API; the HTTP face uses these.

    Attributes:
        origin: where it listens.
        headers: sent with every request (names in lower case), such as its key.
    """

    origin: Origin
    headers: Sequence[tuple[bytes, bytes]]
