"""What is done to servers, connections and the proxy's patience while streams flow.

Each blow strikes, waits as long as it needs, and takes back what it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.chaos.arena import STALL_S, Arena

from rhizome_testing.simulated_server import SimulatedServer
from rhizome_testing.storm import grpc_caller, http_caller
from rhizome_testing.storm.question import draw
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_client import GrpcEngineClient

Blow = Callable[[Arena], Awaitable[None]]
_LEAVERS = 12


async def kill_an_engine(arena: Arena) -> None:
    """kill -9."""
    await _killed(arena.dice.choice(arena.engines))


async def kill_a_server(arena: Arena) -> None:
    """kill -9."""
    await _killed(arena.dice.choice(arena.servers))


async def kill_everything(arena: Arena) -> None:
    """kill -9 of all of them: nobody can answer, and callers are told so."""
    servers = [*arena.engines, *arena.servers]
    with arena.outage():
        for server in servers:
            await asyncio.to_thread(server.kill)
        await asyncio.sleep(0.5)
        for server in servers:
            server.start()
        for server in servers:
            await asyncio.to_thread(server.wait_serving)
        await asyncio.to_thread(arena.proxy.wait_ready, len(servers))


async def freeze_an_engine(arena: Arena) -> None:
    """SIGSTOP for longer than the proxy's patience, then SIGCONT."""
    await _frozen(arena.dice.choice(arena.engines))


async def freeze_a_server(arena: Arena) -> None:
    """SIGSTOP for longer than the proxy's patience with checks, then SIGCONT."""
    await _frozen(arena.dice.choice(arena.servers))


async def restart_an_engine(arena: Arena) -> None:
    """SIGTERM, and back at once."""
    await _restarted(arena.dice.choice(arena.engines))


async def restart_a_server(arena: Arena) -> None:
    """SIGTERM, and back at once."""
    await _restarted(arena.dice.choice(arena.servers))


async def refuse_with_errors(arena: Arena) -> None:
    """A burst of UNAVAILABLE, 503 and 500."""
    first, second = arena.dice.sample(arena.servers, 2)
    async with (
        _faulty(arena.dice.choice(arena.engines), status=503),
        _faulty(first, status=503),
        _faulty(second, status=500),
    ):
        await asyncio.sleep(0.4)


async def look_ill(arena: Arena) -> None:
    """Health says no, while everything works."""
    engine, server = arena.dice.choice(arena.engines), arena.dice.choice(arena.servers)
    async with _faulty(engine, unhealthy=True), _faulty(server, unhealthy=True):
        await asyncio.sleep(1.0)


async def slow_down(arena: Arena) -> None:
    """Steps take eight times as long: slow is not dead."""
    engine, server = arena.dice.choice(arena.engines), arena.dice.choice(arena.servers)
    async with _faulty(engine, latency=8.0), _faulty(server, latency=8.0):
        await asyncio.sleep(1.5)


async def reset_connections(arena: Arena) -> None:
    """RST: of an engine's connection, and of a server's, in streams and before their first byte."""
    arena.wire.reset()
    for after_tokens in (7, 0):
        async with _faulty(arena.dice.choice(arena.servers), reset=after_tokens):
            await asyncio.sleep(0.4)
    arena.wire.reset()


async def half_close_connections(arena: Arena) -> None:
    """FIN: of an engine's connection, and of a server's, in streams and before their first byte."""
    arena.wire.half_close()
    for after_tokens in (7, 0):
        async with _faulty(arena.dice.choice(arena.servers), half_close=after_tokens):
            await asyncio.sleep(0.4)


async def lose_packets(arena: Arena) -> None:
    """An engine's connection carries nothing any more, and then does again."""
    arena.wire.swallow()
    await asyncio.sleep(2 * STALL_S)
    arena.wire.flow()


async def stall_streams(arena: Arena) -> None:
    """Streams fall silent for ever while others flow: in the middle, and before their first byte."""
    async with _faulty(arena.dice.choice(arena.engines), stall=5):
        await asyncio.sleep(0.1)
    for after_tokens in (5, 0):
        async with _faulty(arena.dice.choice(arena.servers), stall=after_tokens):
            await asyncio.sleep(0.2)


async def drip_answers(arena: Arena) -> None:
    """A slow-loris server: a byte per 100 ms."""
    async with _faulty(arena.dice.choice(arena.servers), slow_loris=True):
        await asyncio.sleep(0.2)


async def close_the_door(arena: Arena) -> None:
    """The port is closed for a moment; what is open goes on."""
    await asyncio.to_thread(lambda: arena.dice.choice(arena.servers).fault(refuse_s=1.0))
    await asyncio.sleep(1.2)


async def callers_leave(arena: Arena) -> None:
    """Callers hang up: in the middle, before the first byte, and with RST."""
    exchanges = []
    for number in range(_LEAVERS):
        question = draw(arena.dice, 200, 400, chat=True, whole=0.3)
        exchange = await http_caller.start(arena.proxy.http_port, http_caller.request(question))
        exchanges.append(exchange)
        if number % 3 == 0:
            exchange.close()
    client = GrpcEngineClient(f"127.0.0.1:{arena.proxy.port}", peer_name="leaver")
    with contextlib.suppress(EngineError):
        for _ in range(_LEAVERS):
            await client.open(grpc_caller.request(draw(arena.dice, 200, 400, chat=False)), lambda: None)
    await asyncio.sleep(0.5)
    for number, exchange in enumerate(exchanges):
        exchange.close(reset=number % 2 == 1)
    await client.close()


async def callers_half_close(arena: Arena) -> None:
    """Callers who send FIN after their request: they are gone, or get everything."""
    for _ in range(_LEAVERS // 2):
        reader, writer = await asyncio.open_connection("127.0.0.1", arena.proxy.http_port)
        question = draw(arena.dice, 10, 30, chat=True)
        writer.write(http_caller.request(question))
        await writer.drain()
        writer.write_eof()
        async with asyncio.timeout(15):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()


async def callers_drip(arena: Arena) -> None:
    """Slow-loris callers: heads that never end, bodies that never come. They are shown out."""
    whole = http_caller.request(draw(arena.dice, 10, 30, chat=True))
    head = whole.partition(b"\r\n\r\n")[0]
    writers = []
    for number in range(_LEAVERS):
        _, writer = await asyncio.open_connection("127.0.0.1", arena.proxy.http_port)
        writers.append(writer)
        if number % 2:
            writer.write(head + b"\r\n\r\n" + whole[len(head) + 4 : -1])
    for at in range(15):
        for writer in writers[::2]:
            writer.write(head[at : at + 1])
        await asyncio.sleep(0.1)
    for writer in writers:
        writer.close()


async def callers_read_nothing(arena: Arena) -> None:
    """Callers with closed eyes: long streams into sockets that nobody reads; then they leave."""
    sockets = []
    for _ in range(4):
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", arena.proxy.http_port))
        await asyncio.get_running_loop().sock_sendall(
            raw, http_caller.request(draw(arena.dice, 3000, 3000, chat=True))
        )
        sockets.append(raw)
    client = GrpcEngineClient(f"127.0.0.1:{arena.proxy.port}", peer_name="blind", initial_credit=1)
    with contextlib.suppress(EngineError):
        for _ in range(4):
            await client.open(grpc_caller.request(draw(arena.dice, 3000, 3000, chat=False)), lambda: None)
    await asyncio.sleep(2.0)
    for raw in sockets:
        raw.close()
    await client.close()


async def callers_talk_nonsense(arena: Arena) -> None:
    """What is no HTTP, or no JSON, or no gRPC."""
    for port in (arena.proxy.http_port, arena.proxy.port):
        for words in (
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nno{}",
            b"GET /nowhere HTTP/1.1\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            json.dumps({"prompt": "x"}).encode() * 100,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(words)
            writer.write_eof()
            async with asyncio.timeout(15):
                with contextlib.suppress(ConnectionError):
                    await reader.read()
            writer.close()


QUICK: tuple[Blow, ...] = (
    kill_an_engine,
    kill_a_server,
    freeze_an_engine,
    reset_connections,
    refuse_with_errors,
    half_close_connections,
    callers_leave,
    callers_half_close,
)
"""One of each sort, for a test of seconds."""

ALL: tuple[Blow, ...] = (
    *QUICK,
    kill_everything,
    freeze_a_server,
    restart_an_engine,
    restart_a_server,
    look_ill,
    slow_down,
    lose_packets,
    stall_streams,
    drip_answers,
    close_the_door,
    callers_drip,
    callers_read_nothing,
    callers_talk_nonsense,
)


async def _killed(server: SimulatedServer) -> None:
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(0.5)
    server.start()
    await asyncio.to_thread(server.wait_serving)


async def _frozen(server: SimulatedServer) -> None:
    server.signal(signal.SIGSTOP)
    await asyncio.sleep(2 * STALL_S)
    server.signal(signal.SIGCONT)


async def _restarted(server: SimulatedServer) -> None:
    await asyncio.to_thread(server.restart)
    await asyncio.to_thread(server.wait_serving)


@asynccontextmanager
async def _faulty(server: SimulatedServer, **changes: Any) -> AsyncIterator[None]:
    """Requests that come in this block fail so; they go on failing behind it."""
    await asyncio.to_thread(lambda: server.fault(**changes))
    try:
        yield
    finally:
        await asyncio.to_thread(server.heal)
