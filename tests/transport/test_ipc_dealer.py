"""The event loop's own DEALER, against libzmq's ROUTER and against peers that misbehave."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from rhizome_transport import ipc_dealer
from rhizome_transport.errors import EngineError
from rhizome_transport.ipc_dealer import IpcDealer
from rhizome_transport.zmtp import GREETING, ZmtpError, ZmtpReader, message, ping, pong, ready

SIZES = (0, 1, 255, 256, 70_000, 3_000_000, 5)


@contextmanager
def router(endpoint: str, **options: int) -> Iterator[zmq.Socket[bytes]]:
    Path(endpoint.removeprefix("ipc://")).parent.mkdir(mode=0o700, exist_ok=True)
    context = zmq.Context()
    try:
        bound = context.socket(zmq.ROUTER)
        for name, value in {"linger": 0, "rcvtimeo": 5_000, **options}.items():
            setattr(bound, name, value)
        bound.bind(endpoint)
        yield bound
    finally:
        context.destroy(linger=0)


@contextmanager
def listener(endpoint: str) -> Iterator[socket.socket]:
    """A socket that speaks nothing by itself."""
    path = Path(endpoint.removeprefix("ipc://"))
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(5)
        yield listening


async def is_lost(connection: IpcDealer, within_s: float = 5) -> None:
    with pytest.raises(EngineError) as caught:
        await asyncio.wait_for(connection.receive(), within_s)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE and connection.broken
    connection.close()


async def test_messages_of_all_sizes_cross_both_ways_in_order(endpoint: str) -> None:
    with router(endpoint) as core:
        connection = IpcDealer(endpoint, identity=b"me")

        def echo() -> None:
            for _ in SIZES:
                core.send_multipart(core.recv_multipart())

        echoing = asyncio.create_task(asyncio.to_thread(echo))
        sent = [bytes([number]) * size for number, size in enumerate(SIZES)]
        for payload in sent:
            await connection.send(payload)
        assert [await asyncio.wait_for(connection.receive(), 5) for _ in sent] == sent
        await echoing
        connection.close()


async def test_who_connects_is_addressed_by_the_identity_it_gives(endpoint: str) -> None:
    with router(endpoint) as core:
        for identity in (b"me", b""):
            connection = IpcDealer(endpoint, identity=identity)
            await connection.send(b"hello")
            given_by_core, payload = await asyncio.to_thread(core.recv_multipart)
            assert payload == b"hello" and (
                given_by_core == identity if identity else len(given_by_core) == 5
            )
            connection.close()


async def test_what_is_not_read_over_there_waits_here_and_keeps_its_order(endpoint: str) -> None:
    count = 200
    with router(endpoint, rcvhwm=1) as core:
        connection = IpcDealer(endpoint)

        async def send_all() -> None:
            for number in range(count):
                await connection.send(number.to_bytes(4, "big") + bytes(50_000))

        sending = asyncio.create_task(send_all())
        await asyncio.wait((sending,), timeout=0.3)
        assert not sending.done() and not connection.send_now(b"one too many")
        received = [(await asyncio.to_thread(core.recv_multipart))[1] for _ in range(count)]
        await sending
        assert [int.from_bytes(payload[:4], "big") for payload in received] == list(range(count))
        connection.close()


async def test_an_idle_connection_answers_heartbeats_and_lives_on(endpoint: str) -> None:
    with router(endpoint, heartbeat_ivl=30, heartbeat_timeout=90, heartbeat_ttl=0) as core:
        connection = IpcDealer(endpoint)
        await connection.send(b"first")
        identity, _ = await asyncio.to_thread(core.recv_multipart)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(core.send_multipart, (identity, b"still there"))
        assert await asyncio.wait_for(connection.receive(), 5) == b"still there"
        assert not connection.broken
        connection.close()


async def test_a_core_that_falls_silent_counts_as_gone(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipc_dealer, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(ipc_dealer, "SILENCE_S", 0.25)
    with listener(endpoint) as listening:
        connection = IpcDealer(endpoint)
        peer, _ = listening.accept()
        with peer:
            assert peer.recv(64) == GREETING
            peer.sendall(GREETING + ready(b""))
            began = asyncio.get_running_loop().time()
            await is_lost(connection)
            assert asyncio.get_running_loop().time() - began >= 0.25
            assert ping() in peer.recv(65_536)


async def test_a_core_that_answers_pings_lives_on(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipc_dealer, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(ipc_dealer, "SILENCE_S", 0.25)
    with router(endpoint) as core:  # which asks for nothing by itself
        connection = IpcDealer(endpoint)
        await connection.send(b"first")
        await asyncio.to_thread(core.recv_multipart)
        await asyncio.sleep(0.6)
        assert not connection.broken
        connection.close()


@pytest.mark.parametrize(
    "words",
    [
        b"HTTP/1.1 400 Bad Request\r\n" + bytes(64),
        GREETING[:10] + b"\x01" + GREETING[11:],
        GREETING[:12] + b"CURVE".ljust(20, b"\0") + GREETING[32:],
        GREETING + ready(b"") + b"\x02" + (1 << 62).to_bytes(8, "big"),
        GREETING + b"\x04\x09\x05ERROR\x02no",
        b"",
    ],
    ids=["not ZMTP", "an old version", "keys", "too large a frame", "a refusal", "nothing"],
)
async def test_who_speaks_otherwise_is_no_core(endpoint: str, words: bytes) -> None:
    with listener(endpoint) as listening:
        connection = IpcDealer(endpoint)
        peer, _ = listening.accept()
        peer.sendall(words)
        with peer:
            if not words:
                peer.close()
            await is_lost(connection)


async def test_nothing_is_sent_before_the_handshake_is_over(endpoint: str) -> None:
    with listener(endpoint) as listening:
        connection = IpcDealer(endpoint)
        assert not connection.send_now(b"early")
        sending = asyncio.create_task(connection.send(b"in time"))
        peer, _ = listening.accept()
        with peer:
            peer.sendall(GREETING)
            await asyncio.sleep(0.05)
            assert peer.recv(65_536) == GREETING + ready(b"")
            peer.sendall(ready(b""))
            await asyncio.wait_for(sending, 5)
            assert peer.recv(65_536) == message(b"in time")
            connection.close()


async def test_too_many_open_files_are_an_engine_error(endpoint: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [socket.socket()]
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[0].fileno() + 1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:  # lower numbers may be free
                held.append(socket.socket())
        with pytest.raises(EngineError, match="no further connection") as caught:
            IpcDealer(endpoint)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in held:
            each.close()


PARTS = st.lists(st.tuples(st.booleans(), st.integers(0, 600)), max_size=6)


@given(parts=PARTS, cuts=st.lists(st.integers(0, 4000), max_size=12))
def test_how_the_stream_is_cut_makes_no_difference(parts: list[tuple[bool, int]], cuts: list[int]) -> None:
    bodies = [(command, bytes([number + 1]) * size) for number, (command, size) in enumerate(parts)]
    frames = [pong(b"\0\0" + body) if command else message(body) for command, body in bodies]
    wire = GREETING + b"".join(frames)
    places = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    reader, messages, commands = ZmtpReader(1000), [], []
    for begin, end in pairwise(places):
        assert reader.missing_bytes > 0
        reader.read(wire[begin:end], messages, commands)
    assert messages == [body for command, body in bodies if not command]
    assert commands == [(b"PONG", body[:16]) for command, body in bodies if command]


def test_a_frame_as_large_as_allowed_is_read_and_a_larger_one_is_not() -> None:
    messages: list[bytes] = []
    ZmtpReader(300).read(GREETING + message(bytes(300)), messages, [])
    assert messages == [bytes(300)]
    with pytest.raises(ZmtpError, match="301 bytes"):
        ZmtpReader(300).read(GREETING + message(bytes(301)), messages, [])
