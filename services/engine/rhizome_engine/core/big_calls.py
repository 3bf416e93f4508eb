"""Calls whose answers are megabytes: one is answered between two steps, and only so many wait.

All at once they would be one frame of gigabytes, and hold up the requests of everybody.
"""

from __future__ import annotations

from collections import deque

import grpc

from rhizome.engine.v1.frames_pb2 import Call
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_server import Peer

BIG_METHODS = frozenset({"GetTokenizer", "GetCacheTree"})
_MOST = 64
_MOST_OF_ONE_STRANGER = 8


class BigCalls:
    """Those that wait, in order."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Peer, Call]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, peer: Peer, call: Call) -> None:
        """Let a call wait for its turn.

        Raises:
            EngineError: RESOURCE_EXHAUSTED, too many wait already, in all or of a peer from elsewhere.
        """
        own = sum(asker is peer for asker, _ in self._waiting) if peer.relayed else 0
        if len(self._waiting) >= _MOST or own >= _MOST_OF_ONE_STRANGER:
            text = f"too many calls of {call.method} wait already; wait for the answers before asking again"
            raise EngineError(grpc.StatusCode.RESOURCE_EXHAUSTED, text, retry_after_s=1.0)
        self._waiting.append((peer, call))

    def next(self) -> tuple[Peer, Call] | None:
        """The one to be answered now; calls of peers that are gone do not count."""
        while self._waiting:
            peer, call = self._waiting.popleft()
            if not peer.gone:
                return peer, call
        return None
