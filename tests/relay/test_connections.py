"""Connections on both sides: kept, reused, found dead, used for several requests at once, closed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from tests.relay.conftest import GET, OK, SSE_HEAD, Call, eventually, post

from rhizome_relay.known_heads import KnownHeads
from rhizome_relay.picker import Ending, Origin
from rhizome_relay.pool import OriginPool
from rhizome_relay.settings import RelaySettings


async def echo(call: Call) -> None:
    await call.send(
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(call.request.body), call.request.body)
    )


async def test_one_connection_serves_many_requests(bed: Any) -> None:
    running = await bed(echo)
    for _ in range(3):  # clients
        peer = await running.peer()
        for number in range(5):
            assert (await peer.ask(post(b"%d" % number))).body == b"%d" % number
    assert running.backend.accepted == 1


async def test_streams_and_uploads_keep_the_connection(bed: Any) -> None:
    async def script(call: Call) -> None:
        await call.send(SSE_HEAD + b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")

    running = await bed(script, replay_bytes=10)
    peer = await running.peer()
    for _ in range(3):
        assert (await peer.ask(GET)).body == b"data: 1\n\n"
    assert running.backend.accepted == 1


@pytest.mark.parametrize("head", [b"Connection: close\r\n", b"Connection: x, Close\r\n"])
async def test_a_backend_that_says_close_is_not_asked_again_there(bed: Any, head: bytes) -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\n%bContent-Length: 0\r\n\r\n" % head)

    running = await bed(script)
    peer = await running.peer()
    for _ in range(2):
        assert (await peer.ask(GET)).status == 200
    assert running.backend.accepted == 2


async def test_a_connection_that_the_backend_closed_is_not_used(bed: Any) -> None:
    running = await bed(echo)
    peer = await running.peer()
    for _ in range(3):
        assert (await peer.ask(post(b"x"))).status == 200
        running.backend.close_connections()
        await eventually(lambda: running.relay.pools.open == 0)
    assert running.targets[0].endings == [Ending.COMPLETE] * 3


@pytest.mark.parametrize("reset", [False, True])
async def test_no_request_is_lost_to_a_connection_that_closes_as_it_is_used(bed: Any, reset: bool) -> None:
    async def close_after_one(call: Call) -> None:
        """The second request on a connection meets its end."""
        if call.request.body == b"1":
            await echo(call)
        elif call.writer in used:
            call.reset() if reset else call.writer.close()
        else:
            await echo(call)
        used.add(call.writer)

    used: set[Any] = set()
    running = await bed(close_after_one, retries=0)
    peer = await running.peer()
    assert (await peer.ask(post(b"1"))).status == 200
    for number in range(2, 20):
        assert (await peer.ask(post(b"%d" % number))).body == b"%d" % number
    assert set(running.targets[0].endings) == {Ending.COMPLETE}
    assert running.targets[0].leased == 0


async def test_idle_connections_to_backends_grow_old(bed: Any) -> None:
    running = await bed(echo, backend_keep_alive_s=0.05)
    await running.ask(post(b"x"))
    assert running.relay.pools.open == 1
    await eventually(lambda: running.backend.open == 0 and running.relay.pools.open == 0)


async def test_a_backend_has_so_many_idle_connections(bed: Any) -> None:
    gate = asyncio.Event()

    async def together(call: Call) -> None:
        await gate.wait()
        await echo(call)

    running = await bed(together, backend_idle_connections=2)
    asks = [asyncio.create_task(running.ask(post(b"x"))) for _ in range(5)]
    await eventually(lambda: running.backend.open == 5)
    gate.set()
    await asyncio.gather(*asks)
    await eventually(lambda: running.backend.open == 2)


async def test_a_backend_that_speaks_unasked_is_not_heard(bed: Any) -> None:
    async def script(call: Call) -> None:
        await echo(call)
        await asyncio.sleep(0.02)
        await call.send(OK)

    running = await bed(script)
    peer = await running.peer()
    assert (await peer.ask(post(b"a"))).body == b"a"
    await eventually(lambda: running.backend.open == 0)
    assert (await peer.ask(post(b"b"))).body == b"b"


async def test_pipelined_requests_are_answered_in_order(bed: Any) -> None:
    running = await bed(echo)
    peer = await running.peer()
    bodies = [b"%d" % number * (number + 1) for number in range(20)]
    await peer.send(b"".join(post(body) for body in bodies))
    assert [(await peer.read("POST")).body for _ in bodies] == bodies


async def test_pipelined_errors_wait_for_their_turn(bed: Any) -> None:
    async def script(call: Call) -> None:
        await gate.wait()
        await echo(call)

    gate = asyncio.Event()
    running = await bed(script)
    peer = await running.peer()
    await peer.send(
        post(b"first") + b"GET /slots HTTP/1.1\r\nHost: a\r\n\r\n" + post(b"third") + b"nonsense\r\n\r\n"
    )
    gate.set()
    answers = [await peer.read("POST") for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 404, 200, 400]
    assert await peer.closed()


async def test_requests_sent_ahead_have_a_limit(bed: Any) -> None:
    running = await bed(echo)
    peer = await running.peer()
    await peer.send(post(b"x") * 100)
    statuses = []
    while not statuses or statuses[-1] == 200:
        statuses.append((await peer.read("POST")).status)
    assert statuses[-1] == 400
    assert len(statuses) < 100


async def test_long_bodies_sent_ahead_wait_in_the_kernel(bed: Any) -> None:
    gate = asyncio.Event()

    async def script(call: Call) -> None:
        await gate.wait()
        await call.send(OK)

    running = await bed(script, replay_bytes=100_000)
    peer = await running.peer()
    sending = asyncio.create_task(peer.send(post(b"x" * 50_000) * 4 + post(b"x" * 3_000_000) + GET))
    await eventually(lambda: len(running.backend.received) == 1)
    gate.set()
    assert [(await peer.read()).status for _ in range(6)] == [200] * 6
    await sending
    assert [len(request.body) for request in running.backend.received] == [50_000] * 4 + [3_000_000, 0]


async def test_a_client_that_says_close_is_let_go(bed: Any) -> None:
    running = await bed(echo)
    peer = await running.peer()
    response = await peer.ask(post(b"x", b"Connection: close") + GET)
    assert response.values(b"connection") == [b"close"]
    assert await peer.closed()
    assert len(running.backend.received) == 1


async def test_an_idle_client_is_let_go(bed: Any) -> None:
    running = await bed(echo, keep_alive_s=0.3)
    peer = await running.peer()
    assert (await peer.ask(post(b"x"))).status == 200
    assert await peer.closed()


async def test_stopping_finishes_what_is_under_way(bed: Any) -> None:
    gate = asyncio.Event()

    async def script(call: Call) -> None:
        await gate.wait()
        await echo(call)

    running = await bed(script)
    idle, busy = await running.peer(), await running.peer()
    await busy.send(post(b"x"))
    await eventually(lambda: len(running.backend.received) == 1)
    stopping = asyncio.create_task(running.server.stop(5))
    assert await idle.closed()
    with pytest.raises(ConnectionRefusedError):
        await running.peer()
    gate.set()
    response = await busy.read("POST")
    assert (response.body, response.values(b"connection")) == (b"x", [b"close"])
    assert await busy.closed()
    assert await stopping


async def test_stopping_cuts_what_does_not_end(bed: Any) -> None:
    async def script(call: Call) -> None:
        await call.until_closed()

    running = await bed(script)
    peer = await running.peer()
    await peer.send(post(b"x"))
    await eventually(lambda: len(running.backend.received) == 1)
    assert not await running.server.stop(0.05)
    await eventually(lambda: running.backend.open == 0)


async def test_stopping_ends_the_connection_of_a_stream_that_had_begun(bed: Any) -> None:
    gate = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD)
        await gate.wait()
        await call.send(b"0\r\n\r\n")

    running = await bed(script)
    peer = await running.peer()
    await peer.send(GET)
    await peer.reader.readuntil(b"\r\n\r\n")
    stopping = asyncio.create_task(running.server.stop(5))
    await eventually(lambda: running.relay.draining)
    gate.set()
    assert await peer.reader.read() == b"0\r\n\r\n"
    assert await stopping


@pytest.mark.parametrize("turns", [1, 2, 3, 4], ids=lambda turns: f"after {turns} turns")
async def test_a_connection_that_is_being_opened_is_closed_with_all_others(bed: Any, turns: int) -> None:
    """Whether it does not stand yet, or just does."""
    running = await bed(echo)
    pool = OriginPool(Origin("127.0.0.1", running.backend.port), RelaySettings(), KnownHeads())
    connecting = asyncio.create_task(pool.connect())
    for _ in range(turns):
        await asyncio.sleep(0)
    pool.close()
    with contextlib.suppress(OSError):
        assert (await connecting).closing
    await eventually(lambda: pool.open == running.backend.open == 0)
