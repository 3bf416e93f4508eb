"""The HTTP face: what it costs, beside other proxies and beside no proxy at all.

One backend (`http_mock.py`) that answers at once; the proxy has a processor of its own, backend and client
have the other. Processor time is the proxy's: it suffers less than wall time from what else the machine does.

    request   whole answers to chats of 2 KB, one after the other on each of 16 kept connections
    event     64 streams of 50 events per second, 200 bytes each
    added     200 requests per second at an even pace, with and without the proxy, in turn
    idle      2,000 open streams that say nothing

Our proxy is told that the backend has room for all of it, as the others assume; its queue is in the way of
every request all the same. `relay` is our relay without the proxy's choices, queue, metrics and traces: the
difference is what those cost.

Where our modules are compiled, `interpreted` is our proxy without that.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import psutil
from proxy_bench import http_load
from proxy_bench.bench import Bench, measured, progress
from proxy_bench.figures import OURS, Figure, compared, medians
from proxy_bench.peers import Peer, installed, start_peer

from rhizome_relay.compiled import COMPILED
from rhizome_testing.cpu_clock import cpu_seconds
from rhizome_testing.processes import ProcessFailedError, ProcessFixture
from rhizome_testing.proxy_process import ProxyProcess

RELAY: Final = "relay"
INTERPRETED: Final = "interpreted"
RATE: Final = 200.0
IDLE: Final = 2000
_DIALLING: Final = 50
_STATIC_PROXY: Final = Path(__file__).parents[2] / "tests" / "relay" / "static_proxy.py"


async def measure(bench: Bench) -> list[Figure]:
    """All targets in turn, in rounds; of each figure the median."""
    ours = [OURS, INTERPRETED] if COMPILED else [OURS]
    names = [*ours, *([RELAY] if _STATIC_PROXY.exists() else []), *installed()]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    mock = Path(__file__).with_name("http_mock.py")
    with ProcessFixture([sys.executable, str(mock)], log=bench.folder / "mock.log", name="mock") as backend:
        port = int((await asyncio.to_thread(backend.wait_for_line, r"^(\d+)$"))[1])
        for number in range(bench.rounds):
            for name in names:
                try:
                    with _started(name, port, bench, number) as peer:
                        rounds[name].append(await _target(bench, peer, port))
                except (ConnectionError, TimeoutError, ProcessFailedError, ZeroDivisionError) as error:
                    if name == OURS:
                        raise
                    progress(f"{name} failed, round {number + 1} counts without it: {error}")
                    continue
                progress(f"{name}, round {number + 1} of {bench.rounds}: {_line(rounds[name][-1])}")
    return _figures({name: medians(found) for name, found in rounds.items() if found})


def _figures(rows: dict[str, dict[str, float]]) -> list[Figure]:
    def bound(peer: str, key: str, factor: float) -> str:
        return f"<= {rows[peer][key] * factor:.2f}" if peer in rows else ""

    return [
        compared(
            "processor time per request, µs", rows, "request_us", bound("sglang-router", "request_us", 1.0)
        ),
        compared("processor time per event, µs", rows, "event_us", bound("vllm-router", "event_us", 1.2)),
        compared("added at 200 requests/s, p50 in ms", rows, "added_p50_ms", "<= 0.35"),
        compared(
            "added at 200 requests/s, p99 in ms",
            rows,
            "added_p99_ms",
            "<= 1.0",
            note="p99 through the proxy less p99 without, of turns one after the other",
        ),
        compared("through the proxy at 200 requests/s, p99 in ms", rows, "p99_ms"),
        compared("without a proxy, p99 in ms, in the same turns", rows, "direct_p99_ms"),
        compared("memory per idle stream, KiB", rows, "idle_kib", "<= 12"),
        compared("resident memory after all, MiB", rows, "rss_mib"),
    ]


def _line(row: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in row.items())


async def _target(bench: Bench, peer: Peer, direct: int) -> dict[str, float]:
    process, port = peer.process, peer.port
    request_us = await _per_answer(process, port, bench.seconds(3))
    event_us = await _per_event(process, port, bench.seconds(4))
    without = await http_load.at_rate(direct, RATE, bench.seconds(3))
    through = await http_load.at_rate(port, RATE, bench.seconds(3))
    return {
        "request_us": request_us,
        "event_us": event_us,
        "added_p50_ms": (statistics.median(through) - statistics.median(without)) * 1e3,
        "added_p99_ms": (_p99(through) - _p99(without)) * 1e3,
        "p99_ms": _p99(through) * 1e3,
        "direct_p99_ms": _p99(without) * 1e3,
        "idle_kib": await _per_idle_stream(process, port),
        "rss_mib": process.memory_info().rss / 2**20,
    }


def _p99(ordered: list[float]) -> float:
    return ordered[len(ordered) * 99 // 100]


async def _per_answer(process: psutil.Process, port: int, seconds: float) -> float:
    async with _connected(port, 16, http_load.request(), again=True) as connections:
        await asyncio.sleep(0.5)
        done, spent = sum(one.answers for one in connections), _cpu_s(process)
        await asyncio.sleep(seconds)
        spent, done = _cpu_s(process) - spent, sum(one.answers for one in connections) - done
    return spent / done * 1e6


async def _per_event(process: psutil.Process, port: int, seconds: float) -> float:
    async with _connected(port, 64, http_load.request('"stream": true, ')) as connections:
        await asyncio.sleep(0.5)
        done, spent = sum(one.events for one in connections), _cpu_s(process)
        await asyncio.sleep(seconds)
        spent, done = _cpu_s(process) - spent, sum(one.events for one in connections) - done
    return spent / done * 1e6


async def _per_idle_stream(process: psutil.Process, port: int) -> float:
    data = http_load.request('"stream": true, "user": "idle", ')
    # What is loaded or made with the first requests is not the streams' memory.
    async with _connected(port, 100, data):
        before = process.memory_info().rss
        async with _connected(port, IDLE, data):
            return float(process.memory_info().rss - before) / IDLE / 1024


@contextlib.asynccontextmanager
async def _connected(
    port: int, count: int, data: bytes, *, again: bool = False
) -> AsyncIterator[list[http_load.Connection]]:
    connections: list[http_load.Connection] = []
    try:
        while len(connections) < count:  # all at once would be another measurement
            batch = await http_load.dial(port, min(_DIALLING, count - len(connections)), data, again=again)
            connections += batch
            for connection in batch:
                connection.ask()
            await http_load.until_answered(batch)
        yield connections
    finally:
        for connection in connections:
            connection.close()
        await asyncio.sleep(0.2)


def _cpu_s(process: psutil.Process) -> float:
    return cpu_seconds(process.pid)


@contextlib.contextmanager
def _started(name: str, backend: int, bench: Bench, number: int) -> Iterator[Peer]:
    label = f"{name}-{number}"
    if name in (OURS, INTERPRETED):
        with measured():
            proxy = ProxyProcess(
                [f"http://127.0.0.1:{backend}"],
                bench.folder,
                *("--log-level", "WARNING", "--max-in-flight", str(8 * IDLE)),
                http=True,
                name=label,
                environment={"PYTHONPATH": ""} if name == INTERPRETED else None,
            )
        with proxy:
            proxy.wait_ready(1)
            yield Peer(psutil.Process(proxy.pid), proxy.http_port)
    elif name == RELAY:
        with measured():
            command = [sys.executable, str(_STATIC_PROXY), str(backend)]
            relay = ProcessFixture(command, log=bench.folder / f"{label}.log", name=name)
        with relay:
            port = int(relay.wait_for_line(r"^(\d+)$")[1])
            yield Peer(psutil.Process(relay.pid), port)
    else:
        with start_peer(name, [backend], bench.folder, label) as peer:
            yield peer
