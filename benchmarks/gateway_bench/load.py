"""Puts load on a server and prints what it did, and what the server spent, as one JSON line.

A process of its own, so that it neither slows the server down nor is slowed down by whoever prints tables.
Counts and the server's processor time are read at the same two moments.

    python benchmarks/gateway_bench/load.py streams --port 8000 --pid 1234
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import sys
import time
from collections.abc import Sequence

import psutil
from arrivals import Arrivals, percentile
from connection import HEALTH_REQUEST, Connection, Received, chat_request, connect

from rhizome_testing.cpu_clock import cpu_seconds

PROMPT_CHARS = 2048
CHAT_TOKENS = 32
TTFT_TOKENS = 4
_SENTENCE = "The traveller asks which road leads to the old harbour before the evening train departs. "
_BEGIN_LIMIT_S = 20.0
_DIALLING = 128
_HEALTH_PROBES = 50
_HEALTH_EVERY_S = 0.02
_SETTLE_S = 1.0


class Server:
    """The process that is measured.

    Args:
        pid: its id.
        port: where it listens.
    """

    def __init__(self, pid: int, port: int) -> None:
        self._process = psutil.Process(pid)
        self.port = port
        self.received = Received()

    def cpu_s(self) -> float:
        """Processor time it has used, of all its threads."""
        return cpu_seconds(self._process.pid)

    def uss_bytes(self) -> int:
        """Memory that is its own."""
        return int(self._process.memory_full_info().uss)

    async def connections(self, count: int) -> list[Connection]:
        """Open so many."""
        return [await connect(self.port, self.received) for _ in range(count)]


async def streams(server: Server, arguments: argparse.Namespace) -> dict[str, float]:
    """Hold streams open, and see what their tokens cost."""
    connections = await server.connections(arguments.count)
    for connection in connections:
        connection.ask(chat_request(stream=True))
    await asyncio.wait_for(asyncio.gather(*(each.spoke for each in connections)), _BEGIN_LIMIT_S)
    await asyncio.sleep(arguments.warm_s)
    received = server.received
    began, cpu_s = time.perf_counter(), server.cpu_s()
    events, tokens = received.events, received.tokens
    await asyncio.sleep(arguments.window_s)
    seconds, cpu_s = time.perf_counter() - began, server.cpu_s() - cpu_s
    events, tokens = received.events - events, received.tokens - tokens
    for connection in connections:
        connection.close()
    return {
        "events_per_s": events / seconds,
        "tokens_per_s": tokens / seconds,
        "cpu_share": cpu_s / seconds,
        "cpu_us_per_event": cpu_s / events * 1e6,
        "cpu_us_per_token": cpu_s / tokens * 1e6,
        "tokens_per_cpu_s": tokens / cpu_s,
        "tokens_per_event": tokens / events,
    }


async def chats(server: Server, arguments: argparse.Namespace) -> dict[str, float]:
    """Whole answers, one after the other on each of a few connections."""
    text = (_SENTENCE * (PROMPT_CHARS // len(_SENTENCE) + 1))[: PROMPT_CHARS - 8]
    done, until = 0, time.perf_counter() + arguments.warm_s

    async def ask(connection: Connection, seed: int) -> None:
        nonlocal done
        numbers = random.Random(seed)
        while time.perf_counter() < until:
            # No two prompts are the same, so that none is remembered.
            content = f"{numbers.randrange(10**7):07d} {text}"
            connection.ask(chat_request(stream=False, max_tokens=CHAT_TOKENS, content=content))
            await connection.ended
            done += 1

    connections = await server.connections(arguments.count)

    async def round_(first_seed: int) -> None:
        await asyncio.gather(*(ask(each, first_seed + i) for i, each in enumerate(connections)))

    await round_(0)
    done, until = 0, time.perf_counter() + arguments.window_s
    began, cpu_s = time.perf_counter(), server.cpu_s()
    await round_(1000)
    seconds, cpu_s = time.perf_counter() - began, server.cpu_s() - cpu_s
    return {
        "chats_per_s": done / seconds,
        "cpu_us_per_chat": cpu_s / done * 1e6,
        "cpu_share": cpu_s / seconds,
    }


async def first_tokens(server: Server, arguments: argparse.Namespace) -> dict[str, float]:
    """Short streams that arrive at random with a mean rate."""
    free = await server.connections(16)
    request = chat_request(stream=True, max_tokens=TTFT_TOKENS)
    cpu_s = 0.0

    async def ask() -> float | None:
        connection = free.pop() if free else await connect(server.port, server.received)
        connection.ask(request)
        await connection.ended
        free.append(connection)
        return (connection.spoke_at - connection.asked_at) * 1e3 if connection.spoke_at else None

    def counts_from_now() -> None:
        nonlocal cpu_s
        cpu_s = server.cpu_s()

    arrivals = Arrivals(arguments.rate, arguments.warm_s, arguments.window_s)
    latencies_ms = await arrivals.run(ask, counts_from_now)
    cpu_s = server.cpu_s() - cpu_s
    return {
        "requests_per_s": len(latencies_ms) / arguments.window_s,
        "p50_ms": percentile(latencies_ms, 50),
        "p99_ms": percentile(latencies_ms, 99),
        "cpu_us_per_request": cpu_s / len(latencies_ms) * 1e6,
    }


async def idle(server: Server, arguments: argparse.Namespace) -> dict[str, float]:
    """Streams that wait for tokens; what they weigh, and whether the server still answers."""
    connections: list[Connection] = []

    async def hold(count: int) -> None:
        while len(connections) < count:
            batch = min(_DIALLING, count - len(connections))
            opened = await server.connections(batch)
            connections.extend(opened)
            for connection in opened:
                connection.ask(chat_request(stream=True))
            await asyncio.wait_for(asyncio.gather(*(each.began for each in opened)), _BEGIN_LIMIT_S)

    await hold(_DIALLING)  # what is loaded or made with the first requests is not the streams' memory
    await asyncio.sleep(_SETTLE_S)
    before = server.uss_bytes()
    began = time.perf_counter()
    await hold(_DIALLING + arguments.count)
    open_s = time.perf_counter() - began
    await asyncio.sleep(_SETTLE_S)
    grown = server.uss_bytes() - before
    latencies_ms = []
    probe = await connect(server.port, server.received)
    for _ in range(_HEALTH_PROBES):
        probe.ask(HEALTH_REQUEST)
        asked_at = time.perf_counter()
        await probe.ended
        latencies_ms.append((time.perf_counter() - asked_at) * 1e3)
        await asyncio.sleep(_HEALTH_EVERY_S)
    for connection in connections:
        connection.close()
    return {
        "kib_per_stream": grown / 1024 / arguments.count,
        "opened_per_s": arguments.count / open_s,
        "health_p50_ms": sorted(latencies_ms)[len(latencies_ms) // 2],
        "health_max_ms": max(latencies_ms),
    }


SCENARIOS = {"streams": streams, "chats": chats, "first_tokens": first_tokens, "idle": idle}


async def run(arguments: argparse.Namespace) -> dict[str, float]:
    """Run one scenario.

    Raises:
        SystemExit: the server refused something, or said nothing.
    """
    server = Server(arguments.pid, arguments.port)
    try:
        figures = await SCENARIOS[arguments.scenario](server, arguments)
    except (TimeoutError, ZeroDivisionError):
        raise SystemExit("the server fell silent, so there is nothing to measure; see its log") from None
    if server.received.refused:
        raise SystemExit(f"{server.received.refused} requests were refused or lost")
    return figures


def main(words: Sequence[str] | None = None) -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description="Put load on a server.")
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True, help="the server's, to read what it spends")
    parser.add_argument("--count", type=int, default=64, help="streams, or connections")
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second")
    parser.add_argument("--warm-s", type=float, default=1.0)
    parser.add_argument("--window-s", type=float, default=5.0)
    arguments = parser.parse_args(words)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        import uvloop
    except ImportError:
        figures = asyncio.run(run(arguments))
    else:
        figures = uvloop.run(run(arguments))
    sys.stdout.write(json.dumps({name: round(value, 4) for name, value in figures.items()}) + "\n")


if __name__ == "__main__":
    main()
