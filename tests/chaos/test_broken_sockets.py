"""Connections that break in every way, at every listener, while others are served."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
from tests.chaos.asking import QUESTIONS, End, Traffic, ends
from tests.chaos.at_rest import assert_engines_free, assert_nothing_leaked, assert_one_end_each
from tests.chaos.conftest import FULL, Report
from tests.chaos.stack import MODEL, WholeStack
from tests.chaos.wire import Wire

from rhizome_testing.gateway_process import GatewayProcess

TIMES = 20 if FULL else 1
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_SETTINGS = bytes(3) + b"\x04" + bytes(5)
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS
_ZMTP = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16 + 32)
_READY = b"\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
_CHUNKED = b"Transfer-Encoding: chunked"
_BODY = b'{"model": "rhizome-demo", "messages": [{"role": "user", "content": "Count"}]}'


def _http_head(length: int) -> bytes:
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length}\r\n\r\n".encode()


HTTP = {
    "nothing": b"",
    "half a request line": b"POST /v1/chat/compl",
    "half a head": _http_head(10)[:60],
    "half a body": _http_head(len(_BODY)) + _BODY[:20],
    "a whole request": _http_head(len(_BODY)) + _BODY,
    "two lengths": b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a chunk that never ends": _http_head(0).replace(b"Content-Length: 0", _CHUNKED) + b"ffff\r\n{",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}
HTTP2 = {
    "nothing": b"",
    "half a preface": _PREFACE[:12],
    "settings only": _PREFACE,
    "half a frame": _PREFACE + b"\x00\x00\x40\x01\x04\x00\x00\x00\x01" + b"\x82" * 20,
    "a frame that is too large": _PREFACE + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + b"x" * 100,
    "wrong compression": _PREFACE + b"\x00\x00\x04\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff",
    "data on no stream": _PREFACE + b"\x00\x00\x05\x00\x01\x00\x00\x00\x07\x00\x00\x00\x00\x00",
    "HTTP/1.1": b"GET / HTTP/1.1\r\n\r\n",
}
ZMTP = {
    "nothing": b"",
    "half a greeting": _ZMTP[:30],
    "a greeting": _ZMTP,
    "another mechanism": _ZMTP.replace(b"NULL", b"XXXX"),
    "half a command": _ZMTP + b"\x04\x26\x05READY\x0bSocket",
    "a message before READY": _ZMTP + b"\x00\x05hello",
    "a frame of 2^62 bytes": _ZMTP + _READY + b"\x02\x40" + bytes(7),
}


@pytest.mark.timeout(300)
async def test_broken_connections_hurt_nobody_else(stack: WholeStack, report: Report) -> None:
    before = await asyncio.to_thread(stack.held)
    dice, broken = random.Random(6), 0
    gates: list[tuple[Callable[[], Awaitable[socket.socket]], dict[str, bytes]]] = [
        (lambda: _tcp(stack.port), HTTP),
        (lambda: _tcp(stack.proxy_port), HTTP2),
        (lambda: _tcp(int(stack.engines[0].rpartition(":")[2])), HTTP2),
        (lambda: _unix(stack.cores[0].removeprefix("ipc://")), ZMTP),
    ]
    async with Traffic(stack, 4.0, seed=6) as others:
        await others.count_until(3)
        for _ in range(TIMES):
            for connect, openings in gates:
                for opening in (*openings.values(), dice.randbytes(dice.randint(1, 4000))):
                    for leave in (_reset, _half_close, _stay):
                        await _break(connect, opening, leave)
                        broken += 1
        await others.count_until(3)
        asked = await others.stop()
    report["connections"] = broken
    report["others"] = ends(asked)
    assert_one_end_each(others.sent, asked)
    assert {one.end for one in asked} <= {End.ANSWER, End.CANCEL}, ends(asked)
    await asyncio.to_thread(assert_engines_free, stack)
    await asyncio.to_thread(assert_nothing_leaked, stack, before)
    for name, service in stack.services.items():
        assert "Traceback" not in service.output, f"{name}: {service.output[-3000:]}"


@pytest.mark.skipif(not FULL, reason="make chaos runs it: a gateway is started")
@pytest.mark.timeout(300)
async def test_a_gateway_finds_its_proxy_again_however_the_wire_breaks(
    stack: WholeStack, tmp_path: Path, report: Report
) -> None:
    wire = Wire(stack.proxy_port)
    await wire.start()
    counted: dict[str, int] = {}
    try:
        with GatewayProcess(f"127.0.0.1:{wire.port}", tmp_path) as gateway:
            await asyncio.to_thread(gateway.wait_ready)
            async with aiohttp.ClientSession() as session:
                for blow in (wire.reset, wire.half_close) * (10 if FULL else 1):
                    asking = [asyncio.create_task(_stream(session, gateway.url)) for _ in range(8)]
                    await asyncio.sleep(0.02)  # somewhere in the middle of their frames
                    blow()
                    for end in await asyncio.wait_for(asyncio.gather(*asking), 60):
                        counted[end] = counted.get(end, 0) + 1
                    await asyncio.to_thread(gateway.wait_ready)
                    async with asyncio.timeout(30):
                        while await _stream(session, gateway.url) != "answer":  # noqa: ASYNC110
                            await asyncio.sleep(0.05)
            assert "Traceback" not in gateway.output
    finally:
        await wire.stop()
    report["ends"] = counted
    assert set(counted) <= {"answer", "error"}, counted
    await asyncio.to_thread(assert_engines_free, stack)


async def _stream(session: aiohttp.ClientSession, url: str) -> str:
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTIONS[0]}], "stream": True}
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        if answer.status != 200:
            return "error" if (await answer.json())["error"]["message"] else "mute"
        lines = [line async for line in answer.content if line.startswith(b"data: ")]
    if any(b'"error"' in line for line in lines):
        return "error"
    return "answer" if lines[-1] == b"data: [DONE]\n" else "silent"


async def _break(
    connect: Callable[[], Awaitable[socket.socket]],
    opening: bytes,
    leave: Callable[[socket.socket], Awaitable[None]],
) -> None:
    with suppress(OSError):  # who is shown out while writing has been answered
        raw = await connect()
        try:
            await asyncio.get_running_loop().sock_sendall(raw, opening)
            await leave(raw)
        finally:
            raw.close()


async def _reset(raw: socket.socket) -> None:
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


async def _half_close(raw: socket.socket) -> None:
    """Say no more, and listen for a moment."""
    raw.shutdown(socket.SHUT_WR)
    await _stay(raw)


async def _stay(raw: socket.socket) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.get_running_loop().sock_recv(raw, 4096), 0.02)


async def _tcp(port: int) -> socket.socket:
    raw = socket.socket()
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
    return raw


async def _unix(path: str) -> socket.socket:
    raw = socket.socket(socket.AF_UNIX)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, path)
    return raw
