"""Connect: one stream per peer, frames in and frames out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc

from rhizome_proxy.router import Router
from rhizome_proxy.service.session import PeerSession
from rhizome_transport.connect_server import ConnectServer
from rhizome_transport.frame_queue import FrameQueue


class ConnectService:
    """Holds the sessions of all peers.

    Args:
        router: chooses engines.
        instance_id: this proxy's, told to each peer.
        window_frames: frames with events that each engine may send ahead of a peer.
    """

    def __init__(self, router: Router, *, instance_id: str, window_frames: int) -> None:
        self._router = router
        self._window_frames = window_frames
        self._draining = False
        self._server = ConnectServer(self._begin, instance_id)

    @property
    def open_requests(self) -> int:
        """Requests that are open on all streams."""
        return sum(session.open_requests for session in self._server.conversations)

    def drain(self) -> None:
        """Take no new requests; each stream ends when its open requests did."""
        self._draining = True
        for session in self._server.conversations:
            session.draining = True
        self._server.drain()

    def abort(self, request_ids: Iterable[str]) -> None:
        """Note that engines are told to end these requests."""
        for session in self._server.conversations:
            session.abort(request_ids)

    def handler(self) -> grpc.RpcMethodHandler[Any, Any]:
        """The method's handler, with frames left as bytes."""
        return self._server.handler()

    def _begin(self, peer_name: str, queue: FrameQueue) -> PeerSession:
        session = PeerSession(self._router, queue, peer_name=peer_name, window_frames=self._window_frames)
        session.draining = self._draining
        return session
