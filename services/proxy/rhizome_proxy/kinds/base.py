"""What the pool and the relays need from a server, whatever kind it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc.aio

from rhizome.engine.v1.load_pb2 import Load

Metadata = Sequence[tuple[str, str]]
EngineStream = grpc.aio.StreamStreamCall[bytes, bytes]
EngineCall = grpc.aio.UnaryStreamCall[bytes, bytes]


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


class Engine(Protocol):
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

    def connect(self) -> EngineStream:
        """Open a stream of serialised ClientFrames to it and of serialised EngineFrames from it."""
        ...

    def call(
        self, method: str, request: bytes, *, timeout_s: float | None = None, metadata: Metadata = ()
    ) -> EngineCall:
        """Call a method of EngineService with one serialised request; a unary method answers one message."""
        ...

    async def close(self) -> None:
        """Release the connection; what is open on it breaks."""
        ...
