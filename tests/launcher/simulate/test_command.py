from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from tests.launcher.simulate.conftest import completion, exchange
from typer.testing import CliRunner

from rhizome_launcher.cli import app

STREAMS = 100
TOKENS = 120
GOAL_US = 15.0
LIMIT_US = 3 * GOAL_US
"""The goal is for a machine that does nothing else; a test that fails says that something is wrong."""


@contextmanager
def simulated(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The command in a process, and the lines it printed for its servers."""
    command = [sys.executable, "-m", "rhizome_launcher", "simulate", *arguments]
    count = int(arguments[arguments.index("--count") + 1]) if "--count" in arguments else 1
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, [process.stdout.readline() for _ in range(count)]
        finally:
            process.kill()


def ports(lines: list[str]) -> list[int]:
    return [int(found[1]) for line in lines if (found := re.search(r"http://127\.0\.0\.1:(\d+)", line))]


async def drain(port: int) -> int:
    """Read one stream to its end and count its events."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(completion(stream=True, max_tokens=TOKENS)).encode()
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )
    read = b""
    while not read.endswith(b"0\r\n\r\n"):
        piece = await reader.read(1 << 20)
        assert piece
        read += piece
    writer.close()
    return read.count(b"data: ") - 2


async def test_a_token_costs_microseconds(capsys: pytest.CaptureFixture[str]) -> None:
    with simulated("--kind", "vllm", "--itl-base-ms", "10", "--itl-per-request-ms", "0") as (process, lines):
        (port,) = ports(lines)
        await drain(port)
        watched = psutil.Process(process.pid)
        before = watched.cpu_times()
        events = sum(await asyncio.gather(*(drain(port) for _ in range(STREAMS))))
        after = watched.cpu_times()
    assert events == STREAMS * TOKENS
    spent_s = after.user + after.system - before.user - before.system
    cost_us = spent_s / events * 1e6
    with capsys.disabled():
        print(f"\nsimulated vllm, {STREAMS} streams: {cost_us:.1f} µs of CPU per token (goal {GOAL_US:.0f})")
    assert cost_us < LIMIT_US


async def test_several_servers_live_in_one_process_until_sigterm() -> None:
    with simulated("--kind", "tgi", "--count", "3", "--verbose", "--speed", "20") as (process, lines):
        found = ports(lines)
        assert len(set(found)) == 3
        for port in found:
            assert (await exchange(port, "POST", "/v1/completions", completion()))[0] == 200
        assert process.stdout is not None
        assert "tokens/s" in await asyncio.to_thread(process.stdout.readline)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 10) == 0


async def test_a_stopped_process_goes_on_where_it_was() -> None:
    with simulated("--kind", "vllm", "--itl-base-ms", "5", "--itl-per-request-ms", "0") as (process, lines):
        (port,) = ports(lines)
        await drain(port)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        stream = asyncio.create_task(drain(port))
        await asyncio.sleep(0.1)
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(0.4)
        process.send_signal(signal.SIGCONT)
        assert await stream == TOKENS
        # A stream that made up for the pause would end when its 120 steps of 5 ms are over, after 0.6 s.
        assert loop.time() - begun > 0.9


async def test_a_crash_ends_the_process_without_a_word() -> None:
    with simulated("--kind", "openai") as (process, lines):
        with pytest.raises((IndexError, ConnectionError)):
            await exchange(ports(lines)[0], "POST", "/simulate", {"crash": True})
        assert await asyncio.to_thread(process.wait, 10) == 70


async def test_faults_may_be_there_from_the_start() -> None:
    with simulated("--kind", "sglang", "--fault", "status=500", "--fault", "count=1") as (_, lines):
        (port,) = ports(lines)
        statuses = [(await exchange(port, "POST", "/v1/completions", completion()))[0] for _ in range(2)]
        assert statuses == [500, 200]


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("--kind", "unknown"), "llamacpp"),
        (("--kind", "vllm", "--fault", "nonsense"), "slow_loris"),
        (("--kind", "tgi", "--kv-events", "tcp://127.0.0.1:0"), "vllm"),
        (("--kind", "rhizome", "--model", "/nowhere"), "tokenizer.json"),
        (("--kind", "rhizome", "--fault", "slow_loris"), "slow_loris"),
        (("--kind", "vllm", "--step-tokens", "10"), "step"),
    ],
)
def test_what_cannot_start_says_why(arguments: tuple[str, ...], advice: str) -> None:
    result = CliRunner().invoke(app, ["simulate", *arguments])
    assert result.exit_code == 1
    assert advice in result.output
