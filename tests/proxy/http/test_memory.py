"""Streams that wait cost little, though the proxy remembers enough to let them go on elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import resource

import orjson
import pytest
from tests.proxy.http.conftest import CHAT, CHATS, Bench
from tests.relay.conftest import SSE_HEAD, post

from rhizome_testing.proxy_process import ProxyProcess

LIMIT_KIB = 12
CHOICES = [{"index": 0, "delta": {"role": "assistant", "content": "One"}, "finish_reason": None}]
EVENT = b"data: %b\n\n" % orjson.dumps({"id": "x", "object": "y", "created": 0, "choices": CHOICES})


async def test_an_idle_stream_costs_little_memory(bench: Bench) -> None:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    streams = 3_000 if files >= 6_400 else 1_000
    if files < 2_400:
        pytest.skip("needs 2,400 open files")
    writers = []

    async def backend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while (head := await reader.readuntil(b"\r\n\r\n")).startswith(b"GET"):
                body = b'{"data": [{"id": "m", "owned_by": "vllm"}]}' if b"/v1/models" in head else b"{}"
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            writers.append(writer)
            writer.write(SSE_HEAD + b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
            await reader.read()
        writer.close()

    server = await asyncio.start_server(backend, "127.0.0.1", 0, limit=65536, backlog=4096)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    process = ProxyProcess([url], bench.folder, "--max-in-flight", "100000", http=True)
    try:
        await asyncio.to_thread(process.wait_ready, 1)
        asked = post(orjson.dumps({**CHATS, "stream": True}), path=CHAT.encode())

        async def open_stream() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", process.http_port, limit=4096)
            writers.append(writer)
            writer.write(asked)
            await reader.readuntil(b"One")

        for _ in range(4):
            await asyncio.gather(*(open_stream() for _ in range(50)))
        before = process.rss_bytes
        for _ in range((streams - 200) // 100):
            await asyncio.gather(*(open_stream() for _ in range(100)))
        per_stream_kib = (process.rss_bytes - before) / (streams - 200) / 1024
        assert per_stream_kib < LIMIT_KIB
    finally:
        for writer in writers:
            writer.close()
        await asyncio.to_thread(process.terminate)
        server.close()
        await server.wait_closed()
