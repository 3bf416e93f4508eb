"""The frames' own gRPC connection, against gRPC's servers and against peers that misbehave."""

from __future__ import annotations

import asyncio
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import hpack
import pytest
from tests.transport.echo_server import echo, echoes, fails, next_of, served

from rhizome_testing.certificates import Authority, client_tls
from rhizome_testing.ports import free_port
from rhizome_transport import grpc_connection
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_connection import GrpcConnection, GrpcDialer
from rhizome_transport.grpc_server import GrpcServer
from rhizome_transport.grpc_target import GrpcTarget
from rhizome_transport.tokens import Tokens

DATA, HEADERS, SETTINGS = 0, 1, 4
SIZES = (0, 1, 16_379, 16_380, 70_000, 5_000_000, 3)


@contextmanager
def listener() -> Iterator[socket.socket]:
    """A socket that speaks nothing by itself."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(5)
        yield listening


def target_of(listening: socket.socket) -> str:
    return f"127.0.0.1:{listening.getsockname()[1]}"


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def window(more: int) -> bytes:
    return frame(8, 0, 0, struct.pack("!L", more))


async def opened(
    listening: socket.socket, words: bytes = frame(SETTINGS, 0, 0)
) -> tuple[GrpcConnection, socket.socket]:
    """A connection to a peer that speaks these words and no others."""
    opening = asyncio.create_task(GrpcDialer(target_of(listening))())
    peer, _ = await asyncio.to_thread(listening.accept)
    peer.sendall(words)
    return await opening, peer


async def failure_of(connection: GrpcConnection) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await next_of(connection)
    assert connection.broken
    connection.close()
    return caught.value


async def test_messages_of_all_sizes_cross_both_ways_in_order():
    async with served() as (_, target):
        connection = await GrpcDialer(target)()
        sent = [bytes([number]) * size for number, size in enumerate(SIZES)]
        for payload in sent:
            connection.post(payload)
        assert [await next_of(connection) for _ in sent] == sent
        for payload in sent:
            await connection.send(payload)
        assert [await next_of(connection) for _ in sent] == sent
        connection.close()


async def test_data_that_nobody_acknowledges_ends_a_connection_soon():
    async with served() as (_, target):
        connection = await GrpcDialer(target)()
        assert connection._transport is not None
        own = connection._transport.get_extra_info("socket")
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
        connection.close()


async def test_what_is_not_read_over_there_waits_here_and_keeps_its_order():
    go_on = asyncio.Event()

    async def late(frames: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        await go_on.wait()
        async for one in frames:
            yield one[:4]

    async with served(late) as (_, target):
        connection = await GrpcDialer(target)()
        # More than the window that gRPC's servers open by themselves on a fast network.
        sent = [number.to_bytes(4, "big") + bytes(1_000_000) for number in range(64)]

        async def send_all() -> None:
            for payload in sent:
                await connection.send(payload)

        sending = asyncio.create_task(send_all())
        await asyncio.wait((sending,), timeout=0.3)
        assert not sending.done() and not connection.send_now(b"one too many")
        go_on.set()
        assert [await next_of(connection) for _ in sent] == [payload[:4] for payload in sent]
        await sending
        connection.close()


async def test_what_arrives_is_handed_over_as_it_comes():
    async with served() as (_, target):
        connection = await GrpcDialer(target)()
        taken: list[bytes] = []
        carrying = asyncio.create_task(connection.carry(taken.extend))
        for number in range(1000):
            connection.post(b"%d" % number)
        async with asyncio.timeout(10):
            while len(taken) < 1000:  # noqa: ASYNC110 - the loop's own callback fills it
                await asyncio.sleep(0.01)
        assert taken == [b"%d" % number for number in range(1000)]
        connection.close()
        with pytest.raises(EngineError):
            await carrying


async def test_the_server_sees_the_token_and_the_end():
    seen: dict[str, Any] = {}
    gone = asyncio.Event()

    async def watch(frames: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        seen.update(context.invocation_metadata())
        try:
            yield b"welcome"
            async for _ in frames:
                pass
        finally:
            gone.set()

    async with served(watch) as (_, target):
        connection = await GrpcDialer(target, tokens=Tokens(("0123456789abcdef", "x" * 16)))()
        assert await next_of(connection) == b"welcome"
        assert seen["authorization"] == "Bearer 0123456789abcdef"
        connection.close()
        await asyncio.wait_for(gone.wait(), 5)
        assert not connection.send_now(b"too late")
        connection.post(b"too late")
        connection.close()


async def test_why_a_server_ends_the_call_is_told_after_all_that_it_said():
    async def refuse(_frames: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        yield b"before"
        raise EngineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "no pages: 100 % used, €", reason="QUEUE_FULL")

    async with served(refuse) as (_, target):
        connection = await GrpcDialer(target)()
        assert await next_of(connection) == b"before"
        error = await failure_of(connection)
    assert (error.code.name, error.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert error.message == "no pages: 100 % used, €"


async def test_a_method_that_is_not_there_and_an_end_without_error():
    async def end(_frames: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        return
        yield b""

    async with served(end) as (_, target):
        error = await failure_of(await GrpcDialer(target)())
        assert (error.code, error.message) == (grpc.StatusCode.UNAVAILABLE, "the engine ended the stream")
    server = GrpcServer("127.0.0.1:0", service_names=(ENGINE_SERVICE,))
    target = f"127.0.0.1:{await server.start()}"
    assert (await failure_of(await GrpcDialer(target)())).code is grpc.StatusCode.UNIMPLEMENTED
    await server.drain_and_stop(0)


async def test_a_server_that_goes_away_lets_the_call_finish():
    server = grpc.aio.server()
    connect: Any = grpc.stream_stream_rpc_method_handler(echo)
    server.add_registered_method_handlers(ENGINE_SERVICE, {"Connect": connect})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    connection = await GrpcDialer(f"127.0.0.1:{port}")()
    connection.post(b"one")
    assert await next_of(connection) == b"one"
    stopping = asyncio.create_task(server.stop(20))
    await asyncio.sleep(0.3)
    connection.post(b"two")
    assert await next_of(connection) == b"two"
    connection.close()
    await asyncio.wait_for(stopping, 5)


async def test_a_server_that_dies_is_noticed_at_once():
    with listener() as listening:
        connection, peer = await opened(listening)
        peer.close()
        error = await failure_of(connection)
    assert error.code is grpc.StatusCode.UNAVAILABLE and "broke" in error.message


async def test_what_a_server_said_before_it_died_is_read_even_where_we_write_first():
    block = hpack.Encoder().encode([(":status", "200"), ("content-type", "application/grpc")])
    trailers = hpack.Encoder().encode([("grpc-status", "16"), ("grpc-message", "no")])
    said = (
        frame(HEADERS, 0x4, 1, block)
        + frame(DATA, 0, 1, b"\0\0\0\0\4last")
        + frame(HEADERS, 0x5, 1, trailers)
    )
    with listener() as listening:
        connection, peer = await opened(listening)
        peer.sendall(said)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()  # with a reset
        connection.post(b"too late")
        connection.post(b"too late")
        assert await next_of(connection) == b"last"
        assert (await failure_of(connection)).code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_peer_that_reads_nothing_does_not_keep_a_closed_connection():
    with listener() as listening:
        connection, peer = await opened(
            listening, frame(SETTINGS, 0, 0, struct.pack("!HL", 4, 2**31 - 1)) + window(2**30)
        )
        connection.post(bytes(30_000_000))
        connection.close()
        received = 0
        await asyncio.sleep(1.5)
        with peer, suppress(ConnectionResetError):
            peer.settimeout(5)
            while data := await asyncio.to_thread(peer.recv, 1 << 20):
                received += len(data)
    assert received < 30_000_000


async def test_servers_on_unix_sockets_and_by_name_are_reached():
    with tempfile.TemporaryDirectory() as folder:
        async with served(address=f"unix:{Path(folder) / 'engine.sock'}") as (_, target):
            assert await echoes(target)
            assert await echoes(target.replace("unix:", "unix://"))
        assert not (Path(folder) / "engine.sock").exists()
        with pytest.raises(EngineError, match="no such file or directory"):
            await GrpcDialer(target)()
    async with served() as (_, target):
        port = target.rpartition(":")[2]
        # ::1 comes first of them on most machines, and nobody listens there.
        for written in (f"localhost:{port}", f"dns:///localhost:{port}", f"ipv4:127.0.0.1:{port}"):
            assert await echoes(written)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (f"127.0.0.1:{free_port()}", "connection refused"),
        ("no.such.host.invalid:1", "cannot be reached"),
        ("a b:1", "is no address"),
        ("xds:///engine", "is no address"),
        ("host:99999", "is no address"),
        ("", "is no address"),
        ("x" * 300 + ":1", "cannot be reached"),
    ],
)
async def test_who_cannot_be_reached_is_unavailable(target: str, said: str):
    with pytest.raises(EngineError, match=said) as caught:
        await GrpcDialer(target)()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_how_targets_are_written():
    read = GrpcTarget.parse
    assert read("[::1]:50051") == read("ipv6:[::1]:50051") == GrpcTarget("::1", 50051, "", "[::1]:50051")
    assert read("dns://1.1.1.1/engine:50051") == GrpcTarget("engine", 50051, "", "engine:50051")
    assert read("engine") == GrpcTarget("engine", 443, "", "engine")
    assert read("unix:relative.sock").path == "relative.sock"
    assert read("unix:///run/engine.sock").path == "/run/engine.sock"


async def test_a_host_that_says_nothing_to_tls_is_given_up(monkeypatch: pytest.MonkeyPatch, ours: Authority):
    monkeypatch.setattr(grpc_connection, "_CONNECT_S", 0.2)
    with listener() as listening, pytest.raises(EngineError, match=r"nobody answered within 0\.2 s"):
        await GrpcDialer(target_of(listening), tls=client_tls(ours))()


async def test_a_connection_that_is_given_up_while_it_opens_is_closed():
    with listener() as listening:
        opening = asyncio.create_task(GrpcDialer(target_of(listening))())
        peer, _ = await asyncio.to_thread(listening.accept)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        with peer:
            peer.settimeout(5)
            while await asyncio.to_thread(peer.recv, 4096):
                pass


async def test_another_address_is_tried_where_nobody_answers_behind_the_first(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(grpc_connection, "_CONNECT_S", 0.3)
    async with served() as (_, target):
        with listener() as silent, listener() as deaf:
            deaf.close()
            addresses = [silent.getsockname(), ("127.0.0.1", free_port()), split(target)]

            async def found(_where: GrpcTarget) -> list[tuple[str, int]]:
                return addresses

            monkeypatch.setattr(grpc_connection, "_addresses", found)
            assert await echoes(target)
            addresses.pop()
            assert await fails(target, "connection refused")
            addresses.pop()
            assert await fails(target, r"nobody answered within 0\.3 s")


def split(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    return host, int(port)


# Keep-alive


async def test_a_server_that_falls_silent_counts_as_gone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grpc_connection, "_LOOK_S", 0.05)
    with listener() as listening:
        connection, peer = await opened(listening)
        with peer:
            began = asyncio.get_running_loop().time()
            error = await failure_of(connection)
            assert asyncio.get_running_loop().time() - began >= 0.19
            assert b"\0\0\x08\6\0\0\0\0\0" + bytes(8) in peer.recv(65_536)
    assert error.code is grpc.StatusCode.UNAVAILABLE and "has said nothing for 0.15 s" in error.message


async def test_a_server_that_answers_pings_lives_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(grpc_connection, "_LOOK_S", 0.05)
    async with served() as (_, target):
        connection = await GrpcDialer(target)()
        await asyncio.sleep(0.35)  # the third look asks, the fourth would give up
        connection.post(b"still there")
        assert await next_of(connection) == b"still there"
        connection.close()
