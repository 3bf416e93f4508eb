"""The engine core's side of ZeroMQ: a ROUTER without threads, driven by the core's own loop.

The loop calls `poll` for what peers want, `emit` for what happened and `flush` once per step. Nothing here
blocks, except `poll` for as long as it is told.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import zmq
from google.protobuf.message import DecodeError
from zmq.utils.monitor import parse_monitor_message

from rhizome.engine.v1.frames_pb2 import (
    CallResult,
    ClientFrame,
    Hello,
    RequestEvent,
    Welcome,
)
from rhizome.engine.v1.load_pb2 import Load
from rhizome_transport.channel import MAX_MESSAGE_BYTES, PROTOCOL_VERSION
from rhizome_transport.curve import ServerCurve
from rhizome_transport.dealer import (
    HEARTBEAT_INTERVAL_MS,
    HEARTBEAT_TIMEOUT_MS,
    RELAYED_IDENTITY_PREFIX,
)
from rhizome_transport.endpoint import check_served
from rhizome_transport.ipc import IpcLock
from rhizome_transport.outbox import Outbox
from rhizome_transport.zap import DOMAIN, ZapHandler

_log = logging.getLogger(__name__)

_BACKLOG = 4_096
"""Connections that wait to be taken; ipc refuses those above it, and a front may open a thousand at once."""
_LEAST_CREDIT = 1
_MOST_RELAYED_CREDIT = 4_096
"""More frames than a peer that reads could ever be behind."""
_MOST_NAME_CHARS = 256
_RECEIVE_FOR_S = 0.01
"""Frames that come without pause are read for so long between two steps."""
_MOST_UNREAD_FRAMES = 16_384
_MOST_WAITING_EVENTS = 65_536
_MOST_FRAMES_PER_POLL = 1_024
_PROBE_EVERY_MS = 20
_PROBE_FOR_S = 1.0
_LAST_WORDS_MS = 500

_FAILED_HANDSHAKES = int(
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
)


@dataclass(eq=False, slots=True)
class Peer:
    """Somebody who said Hello.

    Attributes:
        identity: how ZeroMQ addresses it; never reused.
        name: as it calls itself.
        outbox: what waits to be sent.
        gone: whether the connection ended; then everything sent to it is dropped.
        key_name: whose key it came with over TCP; empty on ipc.
    """

    identity: bytes
    name: str
    outbox: Outbox = field(repr=False)
    gone: bool = False
    key_name: str = ""

    @property
    def relayed(self) -> bool:
        """Whether its frames may come from another host, so that it is no operator."""
        return bool(self.key_name) or self.identity.startswith(RELAYED_IDENTITY_PREFIX)


@dataclass(slots=True)
class FrameServerCounters:
    """What was dropped, since start.

    Attributes:
        undecodable: messages that are no ClientFrame.
        before_hello: frames of peers that had not said Hello.
        unknown: frames of a kind that this version does not know.
        lost_peers: connections that ended.
        refused: connections over TCP that were not let in.
    """

    undecodable: int = 0
    before_hello: int = 0
    unknown: int = 0
    lost_peers: int = 0
    refused: int = 0


class FrameServer:
    """Serves any number of peers on one ipc endpoint, and on a TCP one if need be.

    Hello, Ping and Credit are answered here; `poll` hands out the rest.

    Args:
        endpoint: `ipc:///path`; see `ipc.IpcLock` for what is refused.
        instance_id: identifies this start of the core; made up when empty.
        tcp_endpoint: `tcp://host:port` for peers from elsewhere; none when empty.
        curve: who may come in there, which is refused without.

    Attributes:
        tcp_endpoint: where peers from elsewhere connect, with the port that was taken; empty where they
            cannot.

    Raises:
        ValueError: an endpoint is wrong, or TCP is to be served without keys.
        OSError: the endpoint is taken or not ours; see also `ipc.IpcLock`.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        instance_id: str = "",
        tcp_endpoint: str = "",
        curve: ServerCurve | None = None,
    ) -> None:
        if tcp_endpoint:
            check_served(tcp_endpoint, curve)
        self.tcp_endpoint = ""
        self._zap: ZapHandler | None = None
        self.instance_id = instance_id or uuid.uuid4().hex
        self.counters = FrameServerCounters()
        self._peers: dict[bytes, Peer] = {}
        self._gone: list[Peer] = []
        self._probe_until = 0.0
        self._next_probe = 0.0
        self._lock = IpcLock(endpoint)
        self._context = zmq.Context(io_threads=1)
        try:
            self._socket = self._bind(endpoint)
            if curve is not None and tcp_endpoint:
                self._bind_tcp(tcp_endpoint, curve)
        except BaseException:
            self._context.destroy(linger=0)
            self._lock.release()
            raise
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        if self._zap is not None:
            self._poller.register(self._zap.socket, zmq.POLLIN)

    @property
    def peers(self) -> tuple[Peer, ...]:
        """Who is connected."""
        return tuple(self._peers.values())

    def poll(self, timeout_ms: int) -> list[tuple[Peer, ClientFrame]]:
        """Wait for requests.

        Args:
            timeout_ms: how long to wait when nothing is there; 0 does not wait, negative waits for ever.

        Returns:
            Submit, Cancel and Call frames in the order of arrival; possibly none before the time is over,
            when something else wanted attention.
        """
        if self._probe_until and timeout_ms != 0:
            timeout_ms = min(timeout_ms, _PROBE_EVERY_MS) if timeout_ms > 0 else _PROBE_EVERY_MS
        ready = dict(self._poller.poll(None if timeout_ms < 0 else timeout_ms))
        received: list[tuple[Peer, ClientFrame]] = []
        if self._socket in ready:
            self._receive(received)
        if self._zap is not None and self._zap.socket in ready:
            self._zap.answer()
        if self._monitor in ready:
            self._note_disconnections()
        self._probe()
        return received

    def take_gone(self) -> list[Peer]:
        """Peers whose connection ended since the last call; the core cancels their requests."""
        gone, self._gone = self._gone, []
        return gone

    def emit(self, peer: Peer, event: RequestEvent) -> None:
        """Queue one event for the next `flush`; a peer that lets them pile up without end is dropped."""
        if not peer.gone:
            peer.outbox.put(event)
            self._check_waiting(peer)

    def emit_tokens(self, peer: Peer, request_id: str, token_ids: Sequence[int]) -> None:
        """As `emit`, for tokens without log probabilities or text, which is faster."""
        if not peer.gone:
            peer.outbox.put_tokens(request_id, token_ids)
            self._check_waiting(peer)

    def reply(self, peer: Peer, result: CallResult) -> None:
        """Queue one answer to a call for the next `flush`."""
        if not peer.gone:
            peer.outbox.put_result(result)

    def flush(self, step: int, load: Load | None = None) -> None:
        """Send every peer at most one frame.

        Args:
            step: number of the scheduler step that just ended.
            load: given to every peer when present.
        """
        for peer in list(self._peers.values()):
            frame = peer.outbox.take(step, load)
            if frame is not None:
                self._send(peer, frame)

    def close(self) -> None:
        """Free the endpoint. What was flushed still goes out to peers that take it at once."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        if self._zap is not None:
            self._zap.close()
        self._socket.close(linger=_LAST_WORDS_MS)
        self._context.term()
        self._lock.release()

    def _bind(self, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        socket.linger = 0
        socket.maxmsgsize = MAX_MESSAGE_BYTES
        socket.router_mandatory = True
        socket.backlog = _BACKLOG
        # Credit bounds what is under way to an honest peer; who grants more than it reads is dropped here.
        socket.sndhwm = _MOST_UNREAD_FRAMES
        socket.heartbeat_ivl = HEARTBEAT_INTERVAL_MS
        socket.heartbeat_timeout = HEARTBEAT_TIMEOUT_MS
        socket.heartbeat_ttl = HEARTBEAT_TIMEOUT_MS
        self._monitor = socket.get_monitor_socket(zmq.Event.DISCONNECTED | _FAILED_HANDSHAKES)
        socket.bind(endpoint)
        self._lock.restrict()
        return socket

    def _bind_tcp(self, endpoint: str, curve: ServerCurve) -> None:
        """Let the same socket listen for peers with keys; what is set now counts for this endpoint only."""
        socket = self._socket
        self._zap = ZapHandler(self._context, curve.name_of)
        socket.zap_domain = DOMAIN
        socket.curve_server = True
        socket.curve_secretkey = curve.secret
        socket.ipv6 = True
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"cannot listen on {endpoint}: {error.strerror}") from None
        self.tcp_endpoint = socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def _receive(self, received: list[tuple[Peer, ClientFrame]]) -> None:
        named = self._zap is not None
        until = time.monotonic() + _RECEIVE_FOR_S
        for _ in range(_MOST_FRAMES_PER_POLL):  # whoever sends without pause must not hold up the steps
            if time.monotonic() > until:
                return
            key_name = ""
            try:
                if named:  # only what libzmq hands out uncopied says whose it is
                    whole = self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
                    parts = [part.bytes for part in whole]
                    key_name = _key_name(whole[-1])
                else:
                    parts = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            if len(parts) != 2:
                self.counters.undecodable += 1
                continue
            try:
                frame = ClientFrame.FromString(parts[1])
            except DecodeError:
                self.counters.undecodable += 1
                continue
            self._handle(parts[0], key_name, frame, received)

    def _handle(
        self, identity: bytes, key_name: str, frame: ClientFrame, received: list[tuple[Peer, ClientFrame]]
    ) -> None:
        kind = frame.WhichOneof("frame")
        if kind == "hello":
            self._welcome(identity, key_name, frame.hello)
            return
        peer = self._peers.get(identity)
        if peer is None:
            self.counters.before_hello += 1
        elif kind in ("submit", "cancel", "call"):
            received.append((peer, frame))
        elif kind == "credit":
            self._grant(peer, frame.credit.frames)
        elif kind == "ping":
            peer.outbox.put_pong(frame.ping.nonce)
            self._send_answers(peer)
        else:
            self.counters.unknown += 1

    def _welcome(self, identity: bytes, key_name: str, hello: Hello) -> None:
        earlier = self._peers.get(identity)
        if earlier is not None:
            self._lose(earlier)
        outbox = Outbox(0)
        name = "".join(char if char.isprintable() else "?" for char in hello.peer_name[:_MOST_NAME_CHARS])
        peer = Peer(identity, name, outbox, key_name=key_name)
        self._grant(peer, max(hello.initial_credit, _LEAST_CREDIT))
        self._peers[identity] = peer
        peer.outbox.put_welcome(Welcome(protocol_version=PROTOCOL_VERSION, instance_id=self.instance_id))
        _log.debug("peer %s said hello (protocol %d)", name, hello.protocol_version)
        self._send_answers(peer)

    @staticmethod
    def _grant(peer: Peer, frames: int) -> None:
        credit = peer.outbox.credit + frames
        # What a peer from elsewhere does not read piles up on the way, where nobody notices.
        peer.outbox.credit = min(credit, _MOST_RELAYED_CREDIT) if peer.relayed else credit

    def _check_waiting(self, peer: Peer) -> None:
        if peer.outbox.waiting_events > _MOST_WAITING_EVENTS:
            self._lose(peer)

    def _send_answers(self, peer: Peer) -> None:
        answers = peer.outbox.take_answers()
        if answers is not None:
            self._send(peer, answers)

    def _send(self, peer: Peer, frame: bytes) -> None:
        try:
            self._socket.send_multipart((peer.identity, frame), zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self._lose(peer)

    def _lose(self, peer: Peer) -> None:
        peer.gone = True
        del self._peers[peer.identity]
        self._gone.append(peer)
        self.counters.lost_peers += 1
        _log.info("peer %s is gone", peer.name)

    def _note_disconnections(self) -> None:
        while self._monitor.poll(0):
            event = parse_monitor_message(self._monitor.recv_multipart())
            if int(event["event"]) & _FAILED_HANDSHAKES:
                self.counters.refused += 1
                continue
            self._probe_until = time.monotonic() + _PROBE_FOR_S
            self._next_probe = 0.0

    def _probe(self) -> None:
        # The monitor says that a connection ended but not whose, and a little before the ROUTER knows. An
        # empty frame to everybody finds out: it is unroutable for whoever is gone, harmless for the others.
        now = time.monotonic()
        if not self._probe_until or now < self._next_probe:
            return
        self._next_probe = now + _PROBE_EVERY_MS / 1e3
        for peer in list(self._peers.values()):
            self._send(peer, b"")
        if now > self._probe_until:
            self._probe_until = 0.0


def _key_name(part: zmq.Frame) -> str:
    """Whose key a message came with; empty on ipc, where nobody asks."""
    try:
        return str(part.get("User-Id"))
    except zmq.ZMQError:
        return ""
