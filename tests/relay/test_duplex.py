"""Answers that begin before their request is complete: which time-out holds is what happened last."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tests.relay.conftest import SSE_HEAD, Call, Peer

from rhizome_relay.picker import Ending

HALF = b"x" * 500
HEAD = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
LONG_S = 30.0


async def until_last(peer: Peer) -> bytes:
    return await asyncio.wait_for(peer.reader.readuntil(b"0\r\n\r\n"), 20)


async def test_events_keep_a_stream_alive_whose_upload_has_stopped(bed: Any) -> None:
    body_s, pause_s = 2.0, 0.1

    async def talk(call: Call) -> None:
        await call.send(SSE_HEAD)
        for number in range(round(2 * body_s / pause_s)):
            await call.event(b"data: %d\n\n" % number)
            await asyncio.sleep(pause_s)
        await call.reader.readexactly(len(HALF) * 2)
        await call.send(b"0\r\n\r\n")

    running = await bed(talk, replay_bytes=10, body_timeout_s=body_s, idle_timeout_s=LONG_S)
    running.backend.reads_body = False
    peer = await running.peer()
    await peer.send(HEAD + HALF)
    await asyncio.wait_for(peer.reader.readuntil(b"data: 3\n\n"), 20)
    await peer.send(HALF[:1])
    await asyncio.wait_for(peer.reader.readuntil(b"data: 39\n\n"), 20)
    await peer.send(HALF[1:])
    await until_last(peer)
    assert running.targets[0].endings == [Ending.COMPLETE]


async def test_silence_is_measured_from_the_last_event_however_late_the_upload_ended(bed: Any) -> None:
    idle_s = 1.5

    async def talk(call: Call) -> None:
        await call.send(SSE_HEAD)
        await call.event(b"data: first\n\n")
        await call.event(b"data: second\n\n")
        await call.reader.readexactly(len(HALF) * 2)
        for number in range(3):
            await call.event(b"data: %d\n\n" % number)
            await asyncio.sleep(0.02)
        await call.until_closed()

    settings = {"body_timeout_s": LONG_S, "first_byte_timeout_s": LONG_S, "idle_timeout_s": idle_s}
    running = await bed(talk, replay_bytes=10, **settings)
    running.backend.reads_body = False
    peer = await running.peer()
    await peer.send(HEAD + HALF)
    await asyncio.wait_for(peer.reader.readuntil(b"second\n\n"), 20)
    await peer.send(HALF)
    began = time.monotonic()
    assert b"data: 2" in await asyncio.wait_for(peer.reader.read(), 20)
    assert time.monotonic() - began < LONG_S / 2 + idle_s
    assert running.targets[0].endings == [Ending.TIMED_OUT]
