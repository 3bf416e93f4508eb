"""Connect: one stream per peer, frames in and frames out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

import grpc
import grpc.aio

from rhizome.engine.v1.frames_pb2 import Hello
from rhizome_proxy.router import Router
from rhizome_proxy.service import frames
from rhizome_proxy.service.outbox import Outbox
from rhizome_proxy.service.session import PeerSession
from rhizome_transport.channel import PROTOCOL_VERSION
from rhizome_transport.errors import EngineError

_LAST_WRITE_S = 5.0
_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[bytes, bytes]


class ConnectService:
    """Holds the sessions of all peers.

    Args:
        router: chooses engines.
        instance_id: this proxy's, told to each peer.
        window_frames: frames with events that each engine may send ahead of a peer.
    """

    def __init__(self, router: Router, *, instance_id: str, window_frames: int) -> None:
        self._router = router
        self._instance_id = instance_id
        self._window_frames = window_frames
        self._sessions: set[PeerSession] = set()
        self._draining = asyncio.Event()

    @property
    def open_requests(self) -> int:
        """Requests that are open on all streams."""
        return sum(session.open_requests for session in self._sessions)

    def drain(self) -> None:
        """Take no new requests; each stream ends when its open requests did."""
        self._draining.set()
        for session in self._sessions:
            session.draining = True

    def abort(self, request_ids: Iterable[str]) -> None:
        """Note that engines are told to end these requests."""
        for session in self._sessions:
            session.abort(request_ids)

    def handler(self) -> grpc.RpcMethodHandler[Any, Any]:
        """The method's handler, with frames left as bytes."""
        return grpc.stream_stream_rpc_method_handler(self._connect)

    async def _connect(self, _frames: object, context: Context) -> None:
        hello = await self._read_hello(context)
        outbox = Outbox(hello.initial_credit)
        outbox.put_control(frames.welcome(self._instance_id))
        session = PeerSession(
            self._router,
            outbox,
            peer_name=hello.peer_name or context.peer(),
            window_frames=self._window_frames,
        )
        session.draining = self._draining.is_set()
        self._sessions.add(session)
        reading = asyncio.create_task(self._read(session, context))
        writing = asyncio.create_task(self._write(outbox, context))
        draining = asyncio.create_task(self._draining.wait())
        try:
            done, _ = await asyncio.wait((reading, writing, draining), return_when=asyncio.FIRST_COMPLETED)
            if writing in done:
                _log.info("peer %s cannot be written to: %r", hello.peer_name, writing.exception())
            else:
                # The peer says nothing more, or we are to stop: answer what is open, then end the stream.
                if reading in done:
                    await reading
                await session.idle.wait()
                await outbox.flushed()
        finally:
            self._sessions.discard(session)
            session.close()
            outbox.close()
            # grpc cannot end a stream while a write is under way, and cancelling the task does not stop that.
            await asyncio.wait((writing,), timeout=_LAST_WRITE_S)
            for task in (reading, writing, draining):
                task.cancel()
            await asyncio.gather(reading, writing, draining, return_exceptions=True)

    async def _read_hello(self, context: Context) -> Hello:
        payload = await context.read()
        frame = frames.parse_client_frame(payload) if isinstance(payload, bytes) else None
        if frame is None or not frame.HasField("hello"):
            raise EngineError(
                grpc.StatusCode.INVALID_ARGUMENT,
                "the first frame of Connect must be Hello; nothing else opens it",
            )
        if frame.hello.protocol_version != PROTOCOL_VERSION:
            raise EngineError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this proxy speaks frame protocol {PROTOCOL_VERSION}, the peer "
                f"{frame.hello.protocol_version}; run the same release of Rhizome on both sides",
            )
        return frame.hello

    async def _read(self, session: PeerSession, context: Context) -> None:
        while isinstance(payload := await context.read(), bytes):
            session.handle(payload)

    async def _write(self, outbox: Outbox, context: Context) -> None:
        while (item := await outbox.next()) is not None:
            frame, written = item
            await context.write(frame)
            if written is not None:
                written()
