"""Streams that wait cost little."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.relay.conftest import SSE_HEAD, post

LIMIT_KIB = 12


async def test_an_idle_stream_costs_little_memory() -> None:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    # Both ends of each stream are in this process; the proxy has two as well, in its own.
    streams = 10_000 if files >= 20_400 else 2_000
    if files < 4_400:
        pytest.skip("needs 4,400 open files")
    backend_writers = []

    async def backend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        backend_writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(SSE_HEAD + b"9\r\ndata: 1\n\n\r\n")
            await reader.read()
        writer.close()

    server = await asyncio.start_server(backend, "127.0.0.1", 0, limit=4096, backlog=4096)
    program = Path(__file__).with_name("static_proxy.py")
    process = subprocess.Popen(  # noqa: ASYNC220 - it starts once
        [sys.executable, str(program), str(server.sockets[0].getsockname()[1])],
        stdout=subprocess.PIPE,
        text=True,
    )
    clients = []
    try:
        assert process.stdout is not None
        port = int(await asyncio.to_thread(process.stdout.readline))
        memory = psutil.Process(process.pid).memory_info

        async def open_stream() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
            clients.append(writer)
            writer.write(
                post(b'{"stream": true, "messages": []}', b"Content-Type: application/json", b"Accept: */*")
            )
            await reader.readuntil(b"data: 1")

        for _ in range(2):
            await asyncio.gather(*(open_stream() for _ in range(50)))
        before = memory().rss
        for _ in range((streams - 100) // 100):
            await asyncio.gather(*(open_stream() for _ in range(100)))
        per_stream_kib = (memory().rss - before) / (len(clients) - 100) / 1024
        assert per_stream_kib < LIMIT_KIB
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
        for writer in [*clients, *backend_writers]:
            writer.close()
        server.close()
        await asyncio.sleep(0.1)
