"""kill -9 of one of four engines under streams: what callers notice.

Four simulated engines of one kind, each a process, stream at a rate that keeps each busy; one is killed, and
does not come back. Every answer is compared, word by word, with the one of an engine that nothing happens to:
greedy and seeded. A request is *lost* when it fails before its first token, *truncated* when it fails later.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from proxy_bench.bench import MODEL, Bench, measured, progress
from proxy_bench.figures import OURS, Figure
from proxy_bench.peers import installed, start_peer

from rhizome_testing.proxy_process import ProxyProcess
from rhizome_testing.simulated_server import SimulatedServer
from rhizome_testing.storm import grpc_caller, http_caller
from rhizome_testing.storm.load import Load
from rhizome_testing.storm.outcome import Ending, counted
from rhizome_testing.storm.question import draw

ENGINES: Final = 4
RATE: Final = 50.0
TOKENS: Final = (40, 120)
DEADLINE_S: Final = 30.0
_PHYSICS: Final = ("--itl-base-ms", "12", "--itl-per-request-ms", "0.05", "--model", str(MODEL))
_READY: Final = 2


async def measure(bench: Bench) -> list[Figure]:
    """All rounds of both faces."""
    figures = _summed("gRPC", {OURS: [await _grpc(bench, number) for number in range(bench.rounds)]})
    names = [OURS, *installed()]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(bench.rounds):
        for name in names:
            rows[name].append(await _http(bench, name, number))
    return figures + _summed("HTTP", rows)


def _summed(face: str, rows: dict[str, list[dict[str, float]]]) -> list[Figure]:
    """Counts over all rounds, times of the worst one."""

    def figure(label: str, key: str, goal: str) -> Figure:
        pick = max if key == "avoided_s" else sum
        found = {name: float(pick(one[key] for one in rounds)) for name, rounds in rows.items()}
        ours = found.pop(OURS)
        if key == "avoided_s":  # others do not tell
            found.clear()
        return Figure(f"{face}, {label}", ours, goal, found, ratios=False)

    return [
        figure("requests", "requests", ""),
        figure("requests open at the engine that was killed", "open", ""),
        figure("lost before the first token", "lost", "<= 0"),
        figure("streams truncated", "truncated", "<= 0"),
        figure("answers with wrong words, silent cuts, hangs", "dishonest", "<= 0"),
        figure("seconds until no request tries it, worst round", "avoided_s", "<= 1"),
    ]


async def _grpc(bench: Bench, number: int) -> dict[str, float]:
    async with engines("rhizome", bench) as (teacher, servers):
        answers = await grpc_caller.learn(teacher.address, TOKENS[1])
        proxy = start_proxy(bench, servers, http=False, name=f"failover-grpc-{number}")
        with proxy:
            await asyncio.to_thread(proxy.wait_ready, ENGINES)
            caller = grpc_caller.GrpcCaller(f"127.0.0.1:{proxy.port}", answers)
            try:
                return await _kill(bench, servers[0], caller.ask, proxy, number, chat=False)
            finally:
                await caller.close()


async def _http(bench: Bench, name: str, number: int) -> dict[str, float]:
    async with engines("vllm", bench) as (teacher, servers):
        answers = await http_caller.learn(teacher.port, TOKENS[1])
        label = f"failover-http-{name}-{number}"
        if name == OURS:
            proxy = start_proxy(bench, servers, http=True, name=label)
            with proxy:
                await asyncio.to_thread(proxy.wait_ready, ENGINES)
                ask = http_caller.HttpCaller(proxy.http_port, answers).ask
                return await _kill(bench, servers[0], ask, proxy, number, chat=True)
        with start_peer(name, [server.port for server in servers], bench.folder, label) as peer:
            ask = http_caller.HttpCaller(peer.port, answers).ask
            return await _kill(bench, servers[0], ask, None, number, chat=True)


async def _kill(
    bench: Bench, victim: SimulatedServer, ask: Any, proxy: ProxyProcess | None, seed: int, *, chat: bool
) -> dict[str, float]:
    progress(f"round {seed}, {'HTTP' if chat else 'gRPC'}")
    dice = random.Random(seed)
    load = Load(ask, lambda: draw(dice, *TOKENS, chat=chat), RATE, DEADLINE_S, seed)
    await asyncio.sleep(bench.seconds(4))
    open_there = (await asyncio.to_thread(victim.state))["running"]
    killed_s = time.monotonic()
    victim.kill()
    avoided_s = 0.0
    if proxy is not None:
        avoided_s = await asyncio.to_thread(_until_avoided, proxy, victim.address) - killed_s
    await asyncio.sleep(bench.seconds(4))
    outcomes = await load.stop()
    counts = counted(outcomes)
    # Over HTTP an answer tells how many back ends its request tried.
    harmed = [one.began_s for one in outcomes if one.ending is not Ending.EXACT or one.attempts > 1]
    late = [began_s for began_s in harmed if began_s > killed_s]
    return {
        "requests": len(outcomes),
        "open": open_there,
        "lost": counts["refused"] + counts["dropped"],
        "truncated": counts["cut"],
        "dishonest": counts["wrong"] + counts["silent"] + counts["hung"],
        "avoided_s": max(avoided_s, max(late, default=killed_s) - killed_s),
    }


def _until_avoided(proxy: ProxyProcess, address: str) -> float:
    """When the proxy sends the backend nothing more, on the monotonic clock."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if proxy.backend(address).state != _READY:
            return time.monotonic()
        time.sleep(0.002)
    return deadline


def start_proxy(
    bench: Bench,
    servers: Sequence[SimulatedServer],
    *arguments: str,
    http: bool,
    name: str,
    ports: Sequence[int] = (),
) -> ProxyProcess:
    """Our proxy, on its processor, with a log that costs little."""
    with measured():
        return ProxyProcess(
            [server.address for server in servers],
            bench.folder,
            *("--log-level", "WARNING", *arguments),
            http=http,
            ports=ports,
            name=name,
        )


@asynccontextmanager
async def engines(
    kind: str, bench: Bench, *options: str, count: int = ENGINES
) -> AsyncIterator[tuple[SimulatedServer, list[SimulatedServer]]]:
    """One to learn from, and some to do things to."""
    started = [SimulatedServer(kind, bench.folder, *(options or _PHYSICS)) for _ in range(count + 1)]
    try:
        for server in started:
            await asyncio.to_thread(server.wait_serving)
        yield started[0], started[1:]
    finally:
        for server in started:
            server.stop()
