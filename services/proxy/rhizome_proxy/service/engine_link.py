"""One peer's stream to one engine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import grpc

from rhizome.engine.v1.frames_pb2 import ClientFrame, Credit, Hello
from rhizome_proxy.pool.backend import Backend
from rhizome_transport.channel import PROTOCOL_VERSION
from rhizome_transport.errors import EngineError
from rhizome_transport.frame_connection import FrameConnection

_BROKEN = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.ABORTED}
)
"""How a stream ends whose engine or network failed; other codes say that the peer or the proxy did wrong."""

_log = logging.getLogger(__name__)


class EngineLink:
    """A Connect stream to an engine on behalf of one peer.

    Every peer has streams of its own, so request ids need no rewriting, and a slow or dead peer costs nobody
    else anything.

    Args:
        backend: the engine.
        peer_name: who asks, for the engine's logs.
        window_frames: frames with events that the engine may send ahead of the peer.
        on_frame: called with each serialised EngineFrame.
        on_lost: called once when the stream ended, unless `close` ended it.

    Attributes:
        reached: the engine has answered on this stream, so it may have what was sent there.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        peer_name: str,
        window_frames: int,
        on_frame: Callable[[EngineLink, bytes], None],
        on_lost: Callable[[EngineLink, EngineError], None],
    ) -> None:
        self.backend = backend
        self.reached = False
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._grant_at = max(1, window_frames // 2)
        self._consumed = 0
        self._connection: FrameConnection | None = None
        self._early: list[bytes] = []
        self._cut = False
        hello = Hello(protocol_version=PROTOCOL_VERSION, peer_name=peer_name, initial_credit=window_frames)
        self.send(ClientFrame(hello=hello).SerializeToString())
        backend.cuts.add(self.cut)
        self._carrying = asyncio.create_task(self._carry())

    def send(self, frame: bytes) -> None:
        """Send a serialised ClientFrame, after those sent before."""
        if self._connection is None:
            self._early.append(frame)
        else:
            self._connection.post(frame)

    def consumed(self) -> None:
        """A frame with events reached the peer: allow another, half a window at a time."""
        self._consumed += 1
        if self._consumed >= self._grant_at:
            self.send(ClientFrame(credit=Credit(frames=self._consumed)).SerializeToString())
            self._consumed = 0

    def cut(self) -> None:
        """End the stream as if the engine had."""
        self._cut = True
        # Not at once: a task that has not begun yet would end without a word.
        asyncio.get_running_loop().call_soon(self._carrying.cancel)

    def close(self) -> None:
        """End the stream; the engine cancels what is open on it."""
        self._cut = False
        self._carrying.cancel()
        self._end()

    async def _carry(self) -> None:
        try:
            connection = self._connection = await self.backend.engine.connect()
            early, self._early = self._early, []
            for frame in early:
                connection.post(frame)
            await connection.carry(self._take)
        except EngineError as failure:
            lost = failure
            if lost.code in _BROKEN:
                self.backend.suspect(f"its stream broke: {lost.message}")
        except asyncio.CancelledError:
            if not self._cut:
                raise
            lost = EngineError(grpc.StatusCode.UNAVAILABLE, "its connection was closed")
        except Exception as failure:
            _log.exception("a frame of backend %s could not be handled", self.backend.name)
            lost = EngineError(grpc.StatusCode.INTERNAL, f"a frame could not be handled: {failure}")
        finally:
            self._end()
        self._on_lost(self, lost)

    def _take(self, frames: Sequence[bytes]) -> None:
        self.reached = True
        self.backend.heard_at = time.monotonic()
        for frame in frames:
            self._on_frame(self, frame)

    def _end(self) -> None:
        self.backend.cuts.discard(self.cut)
        if self._connection is not None:
            self._connection.close()
