"""A connection to an engine core over ZeroMQ that is used once."""

from __future__ import annotations

import grpc

from rhizome_transport.errors import EngineError
from rhizome_transport.frame_connection import FrameConnection


class CoreConnection(FrameConnection):
    """Carries payloads to and from a `frame_server.FrameServer`; see `frame_connection.FrameConnection`.

    Args:
        endpoint: of the core.
    """

    def __init__(self, endpoint: str) -> None:
        super().__init__()
        self._endpoint = endpoint

    def _lost(self) -> EngineError:
        return EngineError(
            grpc.StatusCode.UNAVAILABLE, f"the engine core at {self._endpoint} is gone or not started"
        )


def too_many_open(endpoint: str, error: Exception) -> EngineError:
    """There are too many sockets or open files already."""
    return EngineError(
        grpc.StatusCode.UNAVAILABLE, f"no further connection to {endpoint} can be opened: {error}"
    )
