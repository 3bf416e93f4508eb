"""Clients that read a byte a second of a long stream: they alone wait, and memory stays as it is."""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import time
from pathlib import Path

import pytest
from tests.chaos.asking import QUESTIONS, End, Traffic, ends
from tests.chaos.at_rest import RSS_SLACK, assert_engines_free, assert_nothing_leaked, assert_one_end_each
from tests.chaos.conftest import FULL, Report
from tests.chaos.stack import CACHE_TOKENS, MODEL, WholeStack, eventually

from rhizome_testing.gateway_process import GatewayProcess
from rhizome_testing.running_stack import DEMO_MODEL

READERS = 16 if FULL else 4
SECONDS = 40.0 if FULL else 2.0
TOKENS = 1900
"""Nearly the whole context."""
HUGE = {"logprobs": True, "top_logprobs": 20, "n": 4}
"""Makes an answer of some 10 MB, more than the kernel holds for a connection (4 MiB, by default)."""
ENOUGH = 20 if FULL else 5
SLOWER = 3.0
"""Others may take so many times what they took before; the engine computes the slow ones' tokens, too."""
MOST_GROWTH = 24 << 20
"""Of a process; a core also touches pages of its pool for the first time, all of which it has reserved."""


@pytest.mark.timeout(300)
async def test_clients_that_read_a_byte_a_second_keep_only_themselves_waiting(
    stack: WholeStack, report: Report
) -> None:
    loop = asyncio.get_running_loop()
    async with Traffic(stack, 4.0, seed=4) as others:
        await others.count_until(ENOUGH)
        alone = statistics.median(_seconds(others))
        before = await asyncio.to_thread(stack.held)
        readers = [await _ask_slowly(stack.port) for _ in range(READERS)]
        try:
            began_s = time.monotonic()
            while time.monotonic() - began_s < SECONDS:
                for reader in readers:
                    await asyncio.wait_for(loop.sock_recv(reader, 1), 30)
                await asyncio.sleep(1.0)
            noted = len(others.asked)  # by now the engine has computed what nobody reads
            await others.count_until(ENOUGH)
            beside = statistics.median(_seconds(others, noted))
            during = await asyncio.to_thread(stack.held)
            asked = await others.stop()
        finally:
            for reader in readers:
                reader.close()
    grown = {name: during[name].rss - before[name].rss for name in before}
    report["others' median"] = (
        f"{alone * 1e3:.0f} ms alone, {beside * 1e3:.0f} ms beside {READERS} slow readers"
    )
    report["grown"] = {name: f"{size >> 10} KiB" for name, size in grown.items()}
    report["others"] = ends(asked)
    assert_one_end_each(others.sent, asked)
    assert {one.end for one in asked} <= {End.ANSWER, End.CANCEL}, ends(asked)
    assert beside < SLOWER * alone + 0.25, f"{beside:.2f} s instead of {alone:.2f} s"
    pool = _pool_bytes()
    for name, size in grown.items():
        assert size < MOST_GROWTH + (pool if name.startswith("core-") else 0), grown
    await asyncio.to_thread(assert_engines_free, stack)
    await asyncio.to_thread(assert_nothing_leaked, stack, before, rss_slack=RSS_SLACK + pool)


@pytest.mark.skipif(not FULL, reason="make chaos runs it: thousands of tokens are computed")
@pytest.mark.timeout(300)
def test_a_client_that_reads_nothing_is_shown_out(stack: WholeStack, report: Report, tmp_path: Path) -> None:
    with GatewayProcess(stack.proxy, tmp_path, "--stalled-s", "5", "--keep-alive-s", "1") as gateway:
        gateway.wait_ready()
        reader = asyncio.run(_ask_slowly(gateway.port, **HUGE))
        began_s = time.monotonic()
        try:
            eventually(lambda: _reset(reader), lambda: "the connection is still there", timeout_s=120)
        finally:
            reader.close()
        assert_engines_free(stack)
    report["shown out after"] = f"{time.monotonic() - began_s:.0f} s"


async def _ask_slowly(port: int, **more: object) -> socket.socket:
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, ("127.0.0.1", port))
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": QUESTIONS[0]}],
        "stream": True,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        **more,
    }
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n"
    await loop.sock_sendall(raw, head.encode() + b"Content-Type: application/json\r\n\r\n" + content)
    return raw


def _pool_bytes() -> int:
    """Of the keys and values that a core has room for, in float32."""
    config = json.loads((DEMO_MODEL / "config.json").read_text())
    of_token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    return 4 * of_token * CACHE_TOKENS


def _seconds(traffic: Traffic, since: int = 0) -> list[float]:
    """What whole answers over HTTP took."""
    return [
        one.ended_s - one.began_s
        for one in traffic.asked[since:]
        if one.end is End.ANSWER and one.kind in ("whole", "stream")
    ] or [0.0]


def _reset(raw: socket.socket) -> bool:
    """Whether the other side has ended the connection, without reading what it sent."""
    return bool(raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) or _state(raw) != 1


def _state(raw: socket.socket) -> int:
    """Linux' tcpi_state; 1 is ESTABLISHED."""
    return raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
