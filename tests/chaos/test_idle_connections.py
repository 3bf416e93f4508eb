"""Ten thousand connections on which nothing happens: they cost some memory each, and nobody else a thing."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Awaitable, Callable

import psutil
import pytest
from tests.chaos.asking import End, Traffic, ends
from tests.chaos.at_rest import assert_engines_free, assert_nothing_leaked, assert_one_end_each
from tests.chaos.conftest import FULL, Report
from tests.chaos.stack import WholeStack, eventually

CONNECTIONS = 10_000 if FULL else 300
AT_ONCE = 100
MOST_EACH = 96 << 10
"""Bytes that a connection may cost a process."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""Of HTTP/2, with empty settings."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("to", ["gateway", "proxy", "engine-0"] if FULL else ["gateway"])
async def test_idle_connections_hurt_nobody(stack: WholeStack, report: Report, to: str) -> None:
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most_files < CONNECTIONS + 500:
        pytest.skip(f"a process may open {most_files} files only; raise the hard limit (ulimit -Hn)")
    port, greet = {
        "gateway": (stack.port, _ask_once),
        "proxy": (stack.proxy_port, _preface),
        "engine-0": (int(stack.engines[0].rpartition(":")[2]), _preface),
    }[to]
    before = await asyncio.to_thread(stack.held)
    async with Traffic(stack, 4.0, seed=5) as others:
        idle = await _connect(port, greet)
        try:
            await others.count_until(10)
            during = await asyncio.to_thread(stack.held)
            kept = await asyncio.to_thread(_established, stack.processes()[to], port)
            asked = await others.stop()
        finally:
            for one in idle:
                one.close()
    each = (during[to].rss - before[to].rss) / len(idle)
    report["connections"] = f"{len(idle)} to {to}, {each / 1024:.1f} KiB each"
    report["others"] = ends(asked)
    assert kept >= len(idle), "they were not kept"
    assert_one_end_each(others.sent, asked)
    assert {one.end for one in asked} <= {End.ANSWER, End.CANCEL}, ends(asked)
    assert each < MOST_EACH
    await asyncio.to_thread(
        eventually,
        lambda: stack.held()[to].files < before[to].files + 20,
        lambda: f"{stack.held()[to].files} files are open, {before[to].files} before",
    )
    await asyncio.to_thread(assert_engines_free, stack)
    # Heaps keep what ten thousand connections took; whatever else grew would be a leak.
    await asyncio.to_thread(assert_nothing_leaked, stack, before, rss_slack=CONNECTIONS * MOST_EACH)


def _established(pid: int, port: int) -> int:
    """Connections that a process has at one of its ports."""
    found = psutil.Process(pid).net_connections("tcp")
    return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port for one in found)


async def _connect(port: int, greet: Callable[[socket.socket], Awaitable[None]]) -> list[socket.socket]:
    loop = asyncio.get_running_loop()

    async def one() -> socket.socket:
        raw = socket.socket()
        raw.setblocking(False)
        await loop.sock_connect(raw, ("127.0.0.1", port))
        await greet(raw)
        return raw

    made: list[socket.socket] = []
    for start in range(0, CONNECTIONS, AT_ONCE):
        made += await asyncio.gather(*(one() for _ in range(min(AT_ONCE, CONNECTIONS - start))))
    return made


async def _ask_once(raw: socket.socket) -> None:
    """A request first: who never says anything would be shown out after seconds."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(raw, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert (await loop.sock_recv(raw, 4096)).startswith(b"HTTP/1.1 200 ")


async def _preface(raw: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(raw, _PREFACE)
    assert await loop.sock_recv(raw, 4096)
