"""The ROUTER side, spoken to byte by byte with plain DEALER sockets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from rhizome.engine.v1.frames_pb2 import (
    Call,
    CallResult,
    Cancel,
    ClientFrame,
    Credit,
    EngineFrame,
    Hello,
    Ping,
    RequestEvent,
    Submit,
)
from rhizome.engine.v1.generate_pb2 import GenerateRequest, GenerateResponse, TokenDelta
from rhizome.engine.v1.load_pb2 import Load
from rhizome_transport import frame_server
from rhizome_transport.channel import PROTOCOL_VERSION
from rhizome_transport.frame_server import FrameServer, Peer


class RawPeer:
    """A DEALER that speaks frames without any client library."""

    def __init__(self, context: zmq.Context, endpoint: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(endpoint)

    def send(self, **frame: object) -> None:
        self.socket.send(ClientFrame(**frame).SerializeToString())

    def receive(self) -> EngineFrame | None:
        return EngineFrame.FromString(self.socket.recv()) if self.socket.poll(200) else None


@pytest.fixture
def server(endpoint: str) -> Iterator[FrameServer]:
    server = FrameServer(endpoint, instance_id="core-1")
    yield server
    server.close()


@pytest.fixture
def connect(endpoint: str) -> Iterator[Callable[[], RawPeer]]:
    context = zmq.Context()
    peers: list[RawPeer] = []

    def new_peer() -> RawPeer:
        peers.append(RawPeer(context, endpoint))
        return peers[-1]

    yield new_peer
    for peer in peers:
        peer.socket.close()
    context.term()


def poll_for(
    server: FrameServer, done: Callable[[], bool], frames: list[tuple[Peer, ClientFrame]] | None = None
) -> list[tuple[Peer, ClientFrame]]:
    received = [] if frames is None else frames
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline, "did not happen within 10 s"
        received += server.poll(20)
    return received


def greet(server: FrameServer, peer: RawPeer, credit: int = 8) -> Peer:
    known = set(server.peers)
    peer.send(hello=Hello(protocol_version=PROTOCOL_VERSION, peer_name="raw", initial_credit=credit))
    poll_for(server, lambda: set(server.peers) != known)
    welcome = peer.receive()
    assert welcome is not None
    assert welcome.welcome.instance_id == "core-1"
    (new,) = set(server.peers) - known
    return new


def delta(request_id: str, *token_ids: int) -> RequestEvent:
    return RequestEvent(
        request_id=request_id, response=GenerateResponse(delta=TokenDelta(token_ids=token_ids))
    )


def test_hello_is_answered_with_protocol_and_instance(server, connect):
    peer = greet(server, connect())
    assert peer.name == "raw"
    assert not peer.gone


def test_hands_out_submit_cancel_and_call_in_order(server, connect):
    raw = connect()
    peer = greet(server, raw)
    raw.send(submit=Submit(request=GenerateRequest(request_id="a")))
    raw.send(cancel=Cancel(request_id="a"))
    raw.send(call=Call(call_id="c", method="GetLoad"))
    frames: list[tuple[Peer, ClientFrame]] = []
    poll_for(server, lambda: len(frames) == 3, frames)
    assert [frame.WhichOneof("frame") for _, frame in frames] == ["submit", "cancel", "call"]
    assert {owner for owner, _ in frames} == {peer}


def test_a_step_makes_one_frame_per_peer(server, connect):
    raw_one, raw_two = connect(), connect()
    one, two = greet(server, raw_one), greet(server, raw_two)
    for number in range(3):
        server.emit(one, delta("a", number))
        server.emit(one, delta("b", number))
    server.emit(two, delta("c", 9))
    server.flush(7)
    frame = raw_one.receive()
    assert frame is not None
    assert frame.step == 7
    assert {event.request_id: list(event.response.delta.token_ids) for event in frame.events} == {
        "a": [0, 1, 2],
        "b": [0, 1, 2],
    }
    assert raw_one.receive() is None
    other = raw_two.receive()
    assert other is not None
    assert [event.request_id for event in other.events] == ["c"]


def test_without_credit_events_wait_and_merge(server, connect):
    raw = connect()
    peer = greet(server, raw, credit=1)
    for step in range(5):
        server.emit(peer, delta("a", step))
        server.flush(step)
    first = raw.receive()
    assert first is not None
    assert list(first.events[0].response.delta.token_ids) == [0]
    assert raw.receive() is None
    assert peer.outbox.waiting_events == 1

    raw.send(credit=Credit(frames=1))
    poll_for(server, lambda: peer.outbox.credit == 1)
    server.flush(5)
    second = raw.receive()
    assert second is not None
    assert list(second.events[0].response.delta.token_ids) == [1, 2, 3, 4]


def test_answers_need_no_credit(server, connect):
    raw = connect()
    peer = greet(server, raw, credit=1)
    server.emit(peer, delta("a", 1))
    server.flush(1)
    server.emit(peer, delta("a", 2))
    server.reply(peer, CallResult(call_id="c", response=b"x", final=True))
    server.flush(2, Load(sequence=5))
    assert raw.receive() is not None
    answer = raw.receive()
    assert answer is not None
    assert answer.call_results[0].call_id == "c"
    assert answer.load.sequence == 5
    assert not answer.events


def test_ping_is_answered_at_once(server, connect):
    raw = connect()
    greet(server, raw)
    raw.send(ping=Ping(nonce=42))
    server.poll(1000)
    pong = raw.receive()
    assert pong is not None
    assert pong.pong.nonce == 42


def test_frames_before_hello_are_dropped_and_counted(server, connect):
    raw = connect()
    raw.send(submit=Submit(request=GenerateRequest(request_id="a")))
    assert poll_for(server, lambda: server.counters.before_hello == 1) == []


@pytest.mark.parametrize("payload", [[b"\xff\xff\xff"], [b"", b"x"], [b"a", b"b", b"c"]])
def test_garbage_is_dropped_and_counted(server, connect, payload):
    raw = connect()
    greet(server, raw)
    raw.socket.send_multipart(payload)
    assert poll_for(server, lambda: server.counters.undecodable == 1) == []


def test_frames_of_an_unknown_kind_are_dropped_and_counted(server, connect):
    raw = connect()
    greet(server, raw)
    raw.socket.send(b"\xa2\x06\x01x")  # field 100, as a later version might have
    assert poll_for(server, lambda: server.counters.unknown == 1) == []


def test_a_peer_that_closes_is_reported_once(server, connect):
    raw, stays = connect(), connect()
    gone, other = greet(server, raw), greet(server, stays)
    raw.socket.close()
    reported: list[Peer] = []
    poll_for(server, lambda: bool(reported.extend(server.take_gone()) or reported))
    assert reported == [gone]
    assert gone.gone
    assert server.peers == (other,)
    assert server.take_gone() == []
    server.emit(gone, delta("a", 1))
    server.flush(1)


def test_a_peer_that_says_hello_again_starts_over(server, connect):
    raw = connect()
    first = greet(server, raw)
    raw.send(hello=Hello(protocol_version=PROTOCOL_VERSION, peer_name="again", initial_credit=4))
    poll_for(server, lambda: server.peers != (first,))
    assert server.take_gone() == [first]


def test_polling_returns_when_the_time_is_over(server):
    began = time.monotonic()
    assert server.poll(50) == []
    assert 0.04 < time.monotonic() - began < 2


def test_a_message_beyond_the_limit_costs_the_connection_not_the_server(server, connect):
    raw = connect()
    peer = greet(server, raw)
    raw.socket.send(bytes(64 * 1024 * 1024 + 1))
    reported: list[Peer] = []
    poll_for(server, lambda: bool(reported.extend(server.take_gone()) or reported))
    assert reported == [peer]
    greet(server, connect())


def test_a_peer_that_grants_credit_and_never_reads_is_dropped(server, connect):
    peer = greet(server, connect(), credit=2**32 - 1)
    for step in range(100_000):
        server.emit(peer, delta("r", step))
        server.flush(step)
        if peer.gone:
            break
    assert peer.gone
    assert server.take_gone() == [peer]


def test_a_peer_without_credit_that_asks_without_end_is_dropped(server, connect):
    peer = greet(server, connect(), credit=1)
    for number in range(100_000):
        server.emit(peer, delta(str(number), 1))
        if peer.gone:
            break
    assert server.take_gone() == [peer]


def test_a_peer_that_sends_without_pause_does_not_hold_up_the_loop(server, connect, monkeypatch):
    monkeypatch.setattr(frame_server, "_MOST_FRAMES_PER_POLL", 10)
    raw = connect()
    greet(server, raw)
    for number in range(100):
        raw.send(cancel=Cancel(request_id=str(number)))
    received: list[tuple[Peer, ClientFrame]] = []
    while len(received) < 100:
        some = server.poll(1_000)
        assert len(some) <= 10
        received += some
    assert [frame.cancel.request_id for _, frame in received] == [str(number) for number in range(100)]
