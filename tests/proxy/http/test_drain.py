"""The proxy as a process goes away without anybody noticing."""

from __future__ import annotations

import asyncio
import signal

import httpx
from tests.proxy.http.conftest import CHAT, CHATS, Bench, Reference, url

from rhizome_testing.proxy_process import ProxyProcess


async def test_sigterm_lets_streams_finish_and_exits_0(bench: Bench, expected: Reference):
    server = await bench.simulate(itl_base_ms=10.0)
    asked = {**CHATS, "max_tokens": 200, "stream": True}
    process = ProxyProcess([url(server)], bench.folder, "--drain-delay-s", "0.5", http=True)
    try:
        await asyncio.to_thread(process.wait_ready, 1)
        base = f"http://127.0.0.1:{process.http_port}"
        async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=30) as client:
            assert (await client.get("/health")).status_code == 200
            async with client.stream("POST", CHAT, json=asked) as stream:
                parts = stream.aiter_raw()
                body = await anext(parts)
                process.signal(signal.SIGTERM)
                while (health := await client.get("/health")).status_code == 200:
                    pass
                assert health.json()["status"] == "draining"
                late = await client.post(CHAT, json={**CHATS, "max_tokens": 2})
                assert late.status_code == 200, "who was not told yet is served"
                async for part in parts:
                    body += part
        assert body.endswith(b"data: [DONE]\n\n")
        text = await expected(CHAT, asked)
        assert body.count(b'"content":"') == len(text) / 4 + 1  # and the role's
        assert await asyncio.to_thread(process.wait) == 0
    finally:
        await asyncio.to_thread(process.terminate)


async def test_what_does_not_finish_in_time_is_cut_and_told(bench: Bench):
    server = await bench.simulate(itl_base_ms=50.0)
    asked = {**CHATS, "max_tokens": 10_000, "stream": True}
    process = ProxyProcess([url(server)], bench.folder, "--drain-timeout-s", "0.3", http=True)
    try:
        await asyncio.to_thread(process.wait_ready, 1)
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            address = f"http://127.0.0.1:{process.http_port}{CHAT}"
            async with client.stream("POST", address, json=asked) as stream:
                parts = stream.aiter_raw()
                await anext(parts)
                process.signal(signal.SIGTERM)
                failed = False
                try:
                    async for _ in parts:
                        pass
                except httpx.HTTPError:
                    failed = True
                assert failed, "the end is no orderly one"
        assert await asyncio.to_thread(process.wait) == 1
    finally:
        await asyncio.to_thread(process.terminate)
