"""Bytes as they arrive, no more of them than the client reads, and no backend that works for nobody."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import psutil
import pytest
from tests.relay.conftest import GET, OK, SSE_HEAD, Bed, Call, Peer, eventually, post

from rhizome_relay.picker import Ending

AT_ONCE_S = 0.1
ATTEMPTS = 5  # the machine may be late for others' sake, but not so often in a row


async def test_each_byte_arrives_before_the_next_is_sent(bed: Any) -> None:
    async def drip(call: Call) -> None:
        await call.send(SSE_HEAD)
        for byte in b"data: 1\n\n":
            await call.event(bytes([byte]))
            await asyncio.wait_for(arrived.wait(), 5)
            arrived.clear()
        await call.send(b"0\r\n\r\n")

    arrived = asyncio.Event()
    peer = await (await bed(drip)).peer()
    await peer.send(GET)
    await peer.reader.readuntil(b"\r\n\r\n")
    for byte in b"data: 1\n\n":
        assert await peer.reader.readexactly(6) == b"1\r\n%c\r\n" % byte
        arrived.set()
    assert await peer.reader.readexactly(5) == b"0\r\n\r\n"


async def test_a_slow_backend_delays_nothing(bed: Any) -> None:
    async def drip(call: Call) -> None:
        await call.send(SSE_HEAD)
        for _ in range(5):
            await asyncio.sleep(0.02)
            sent.append(time.perf_counter())
            await call.event(b"x")
        await call.send(b"0\r\n\r\n")

    async def median_delay() -> float:
        sent.clear()
        peer = await running.peer()
        await peer.send(GET)
        await peer.reader.readuntil(b"\r\n\r\n")
        delays = []
        for index in range(5):
            await peer.reader.readexactly(6)
            delays.append(time.perf_counter() - sent[index])
        return sorted(delays)[2]

    sent: list[float] = []
    running: Bed = await bed(drip)
    for _ in range(ATTEMPTS):
        if (delay := await median_delay()) < 0.01:
            break
    assert delay < 0.01


async def test_a_stalled_client_stops_the_backend(bed: Any) -> None:
    async def flood(call: Call) -> None:
        await call.send(SSE_HEAD)
        block = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        for _ in range(total // 65536):
            await call.send(block)
            sent.append(65536)
        await call.send(b"0\r\n\r\n")

    total, sent = 256 << 20, []
    running: Bed = await bed(flood)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.connect(("127.0.0.1", running.server.port))
    sock.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=sock, limit=65536)
    peer = Peer(reader, writer)
    process = psutil.Process()
    before = process.memory_info().rss
    await peer.send(GET)
    await eventually(lambda: bool(sent))
    seen = -1
    while seen != len(sent):  # until nothing moves any more
        seen = len(sent)
        await asyncio.sleep(0.05)
    assert sum(sent) < 32 << 20  # most of it in buffers of the kernel
    assert process.memory_info().rss - before < 16 << 20
    received, peak = 0, 0
    await reader.readuntil(b"\r\n\r\n")
    while received < total:
        received += len(await reader.read(1 << 20))
        peak = max(peak, process.memory_info().rss)
    assert peak - before < 32 << 20
    writer.close()


async def test_a_client_that_reads_nothing_is_left(bed: Any) -> None:
    async def flood(call: Call) -> None:
        await call.send(SSE_HEAD)
        while True:
            await call.event(b"x" * 65536)

    running = await bed(flood, client_stall_s=0.1)
    peer = await running.peer(limit=1024)
    await peer.send(GET)
    await eventually(lambda: running.server.connections == 0)
    await eventually(lambda: running.backend.open == 0)
    assert running.targets[0].endings == [Ending.CANCELLED]


async def test_a_slow_backend_stops_the_upload(bed: Any) -> None:
    free = asyncio.Event()

    async def slow(call: Call) -> None:
        await free.wait()
        count = 0
        while count < total:
            count += len(await call.reader.read(1 << 20))
        await call.send(OK)

    running = await bed(slow, replay_bytes=1000, max_body_bytes=1 << 40)
    running.backend.reads_body = False
    total = 64 << 20
    peer = await running.peer()
    before = psutil.Process().memory_info().rss
    peer.writer.transport.set_write_buffer_limits(65536)
    await peer.send(b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % total)

    async def upload() -> None:
        for _ in range(total // 65536):
            await peer.send(b"x" * 65536)

    task = asyncio.create_task(upload())
    await asyncio.sleep(0.2)
    assert not task.done()
    assert psutil.Process().memory_info().rss - before < 16 << 20
    free.set()
    assert (await peer.read("POST")).status == 200
    await task


async def leave(peer: Peer, how: str) -> None:
    if how == "half":
        peer.writer.write_eof()
    elif how == "reset":
        linger = b"\x01\0\0\0\0\0\0\0"
        peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        peer.writer.transport.abort()
    else:
        peer.writer.close()


@pytest.mark.parametrize("how", ["close", "reset", "half"])
@pytest.mark.parametrize("window", ["headers", "streaming", "whole answer"])
async def test_the_backend_sees_at_once_that_the_client_left(bed: Any, window: str, how: str) -> None:
    began, closed = asyncio.Event(), asyncio.Event()

    async def script(call: Call) -> None:
        if window == "streaming":
            await call.send(SSE_HEAD)
            await call.event(b"data: 1\n\n")
        elif window == "whole answer":
            await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhal")
        began.set()
        await call.until_closed()
        closed.set()

    running = await bed(script)
    peer = await running.peer()
    await peer.send(post(b"{}"))
    await began.wait()
    if window != "headers":
        await peer.reader.readuntil(b"\r\n\r\n")
    await leave(peer, how)
    await eventually(closed.is_set, AT_ONCE_S)
    assert running.targets[0].endings == [Ending.CANCELLED]
    assert len(running.backend.received) == 1


async def test_a_client_that_left_without_reading_is_not_waited_for(bed: Any) -> None:
    async def flood(call: Call) -> None:
        await call.send(SSE_HEAD)
        while True:
            await call.event(b"x" * 65536)
            sent.append(None)

    sent: list[None] = []
    running = await bed(flood)
    peer = await running.peer(limit=1024)
    await peer.send(GET)
    seen = -1
    while seen != len(sent):  # until nothing moves any more
        seen = len(sent)
        await asyncio.sleep(0.05)
    await leave(peer, "half")
    await eventually(lambda: running.targets[0].endings == [Ending.CANCELLED], AT_ONCE_S)


async def test_a_client_that_leaves_while_it_queues_is_forgotten(bed: Any) -> None:
    running = await bed()
    state: list[str] = []

    async def queue(request: Any) -> Any:
        state.append("queued")
        try:
            await asyncio.Event().wait()
        finally:
            state.append("left")

    running.picker.choose = queue
    peer = await running.peer()
    await peer.send(post(b"{}"))
    await eventually(lambda: state == ["queued"])
    await leave(peer, "close")
    await eventually(lambda: state == ["queued", "left"], AT_ONCE_S)
    assert not running.backend.received


async def test_a_client_that_leaves_while_a_connection_is_opened_is_forgotten(bed: Any) -> None:
    running = await bed(connect_timeout_s=30)
    # A full backlog: connections neither open nor fail.
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    running.targets[0].origin = type(running.targets[0].origin)("127.0.0.1", listener.getsockname()[1])
    peer = await running.peer()
    await peer.send(post(b"{}"))
    await eventually(lambda: running.targets[0].leased == 1)
    await leave(peer, "close")
    await eventually(lambda: running.targets[0].leased == 0, AT_ONCE_S)
    await eventually(lambda: running.relay.pools.open == 0, AT_ONCE_S)
    assert running.targets[0].endings == [Ending.CANCELLED]
    for sock in (listener, *fillers):
        sock.close()


async def test_an_upload_that_breaks_off_cancels(bed: Any) -> None:
    running = await bed(replay_bytes=100)
    peer = await running.peer()
    await peer.send(b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 1000)
    await eventually(lambda: running.backend.open == 1)
    await leave(peer, "close")
    await eventually(lambda: running.backend.open == 0)
    assert running.targets[0].endings == [Ending.CANCELLED]


async def test_an_early_answer_to_an_upload_reaches_the_client(bed: Any) -> None:
    async def refuse(call: Call) -> None:
        await call.send(b"HTTP/1.1 400 No\r\nContent-Length: 2\r\n\r\nno")
        await call.until_closed()

    running = await bed(refuse, replay_bytes=100)
    running.backend.reads_body = False
    peer = await running.peer()
    await peer.send(b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 1000)
    response = await peer.read("POST")
    assert (response.status, response.values(b"connection")) == (400, [b"close"])
