"""What a proxy's work depends on as the fleet grows: per request, per engine, per cached token, per gateway.

    python benchmarks/fleet_size.py [--sizes 1,4,16,64] [--rate 30] [--seconds 10] [--quick]

A real proxy stands before simulated engines (`rhizome simulate --kind rhizome`, all in one other process),
once for each size, and is measured from outside:

    idle       processor time per second while nothing is asked: health, load, KV watches; with the default
               pause between two checks of an engine, and with ten times that
    memory     resident once all engines are known, and again when 8 peers have asked every engine
    request    processor time per request at the same rate whatever the size, what idling takes left out; and
               the time to the first token at the client
    frame      processor time per frame of events, with a stream at each engine, so that each token is a frame

Then the parts that depend on the fleet, alone in this process, where 1,000 engines are no problem either: the
decision (prompts of 512 and 8,192 tokens), one message of KV events, memory of the prefix index.

What grows is fitted by a line over the sizes (least squares) and drawn on to 1,000 engines; the parts that
are measured at 1,000 say whether it is one. Processor time holds on a busy machine as well, times to the
first token do not. The last line is all of it as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil

from rhizome.engine.v1.engine_service_pb2 import KvEvent, KvRemoved, KvStored, WatchKvEventsResponse
from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome.engine.v1.load_pb2 import Load
from rhizome_backends.base import Server
from rhizome_backends.rhizome_events import EngineEvents
from rhizome_backends.spec import BackendSpec
from rhizome_proxy.pool.registry import Registry
from rhizome_proxy.router import Router
from rhizome_routing.policies.ask import Ask
from rhizome_routing.policies.cost import Cost
from rhizome_routing.policies.groups import PriorityGroups
from rhizome_routing.prefix.index import PrefixIndex
from rhizome_testing.cpu_clock import cpu_seconds
from rhizome_testing.processes import ProcessFixture
from rhizome_testing.proxy_process import ProxyProcess
from rhizome_transport.grpc_client import GrpcEngineClient

FAR = 1_000
"""Engines that the lines are drawn on to."""
PROMPT, OUTPUT, PEERS, FRAMES = 512, 16, 8, 300
PART_SIZES = (1, 4, 16, 64, 256, FAR)
CACHED_TOKENS = 65_536
"""What each engine of the index holds where its memory is measured."""
EVENT_BLOCKS = 32
"""Blocks that a message of KV events stores and removes: a prompt of 512 tokens came, one went."""
SETTLE_S = 3.0
RARELY_S = 2.5
GROWING = ("idle_rarely_ms_per_s", "idle_ms_per_s", "rss_mib", "peers_mib")
"""What is taken to be a line."""


class Fleet:
    """So many simulated engines in one process, and a proxy before them.

    Args:
        size: engines.
        folder: for logs.
        seconds: how long each thing is watched.
        rate: requests per second.
    """

    def __init__(self, size: int, folder: Path, seconds: float, rate: float) -> None:
        self.size, self._folder, self._seconds, self._rate = size, folder, seconds, rate
        self._draw = np.random.default_rng(size)

    async def measure(self) -> dict[str, float]:
        """All figures of this size."""
        command = [sys.executable, "-m", "rhizome_launcher", "simulate", "--kind", "rhizome"]
        command += ["--count", str(self.size), "--port", "0", "--prefill-rate", "200000"]
        name = f"engines-{self.size}"
        with ProcessFixture(command, log=self._folder / f"{name}.log", name=name) as engines:
            addresses = await asyncio.to_thread(self._addresses, engines)
            rarely = ("--poll-interval-s", str(RARELY_S))
            with ProxyProcess(addresses, self._folder, *rarely, name=f"rarely-{self.size}") as proxy:
                await asyncio.to_thread(proxy.wait_ready, self.size)
                figures = {"idle_rarely_ms_per_s": 1e3 * await self._idle(proxy)}
            with ProxyProcess(addresses, self._folder, name=f"proxy-{self.size}") as proxy:
                await asyncio.to_thread(proxy.wait_ready, self.size)
                return figures | await self._watch(proxy)

    def _addresses(self, engines: ProcessFixture) -> list[str]:
        def told() -> list[str]:
            lines = engines.log.read_text().splitlines()
            return [line.split()[1].removeprefix("grpc://") for line in lines if line.startswith("rhizome ")]

        engines.wait_until(lambda: len(told()) >= self.size, f"{self.size} engines listen", 60.0)
        return told()

    async def _watch(self, proxy: ProxyProcess) -> dict[str, float]:
        idle_share = await self._idle(proxy)
        figures = {"idle_ms_per_s": 1e3 * idle_share, "rss_mib": proxy.rss_bytes / 2**20}
        figures |= await self._ask(proxy, idle_share)
        figures |= await self._stream(proxy, idle_share)
        return figures | await self._visit(proxy)

    async def _idle(self, proxy: ProxyProcess) -> float:
        """Share of a processor."""
        await asyncio.sleep(SETTLE_S)
        before, began = cpu_seconds(proxy.pid), time.monotonic()
        await asyncio.sleep(self._seconds)
        return (cpu_seconds(proxy.pid) - before) / (time.monotonic() - began)

    async def _ask(self, proxy: ProxyProcess, idle_share: float) -> dict[str, float]:
        client = GrpcEngineClient(f"127.0.0.1:{proxy.port}", peer_name="fleet-size")
        try:
            await asyncio.gather(*(self._request(client) for _ in range(2 * self.size)))
            before, began = cpu_seconds(proxy.pid), time.monotonic()
            asking: list[asyncio.Task[float]] = []
            while (now := time.monotonic()) < began + self._seconds:
                asking.append(asyncio.create_task(self._request(client)))
                await asyncio.sleep(max(0.0, began + len(asking) / self._rate - now))
            firsts_s = sorted(await asyncio.gather(*asking))
            took_s = time.monotonic() - began
        finally:
            await client.close()
        used_s = cpu_seconds(proxy.pid) - before - idle_share * took_s
        return {
            "request_us": 1e6 * used_s / len(firsts_s),
            "first_token_ms": 1e3 * firsts_s[len(firsts_s) // 2],
        }

    async def _stream(self, proxy: ProxyProcess, idle_share: float) -> dict[str, float]:
        client = GrpcEngineClient(f"127.0.0.1:{proxy.port}", peer_name="fleet-size")
        try:
            before, began = cpu_seconds(proxy.pid), time.monotonic()
            await asyncio.gather(*(self._request(client, FRAMES) for _ in range(self.size)))
            used_s = cpu_seconds(proxy.pid) - before - idle_share * (time.monotonic() - began)
        finally:
            await client.close()
        return {"frame_us": 1e6 * used_s / (FRAMES * self.size)}

    async def _visit(self, proxy: ProxyProcess) -> dict[str, float]:
        """Several peers, each with a request at every engine: a stream for each pair of them stays open."""
        before = proxy.rss_bytes
        clients = [
            GrpcEngineClient(f"127.0.0.1:{proxy.port}", peer_name=f"gateway-{number}")
            for number in range(PEERS)
        ]
        try:
            for client in clients:
                # As many at once as there are engines: the policy spreads what is open.
                await asyncio.gather(*(self._request(client) for _ in range(2 * self.size)))
            return {"peers_mib": (proxy.rss_bytes - before) / 2**20}
        finally:
            for client in clients:
                await client.close()

    async def _request(self, client: GrpcEngineClient, output: int = OUTPUT) -> float:
        """Seconds to its first token."""
        asked = GenerateRequest()
        asked.token_ids.ids.extend(self._draw.integers(0, 4_000, PROMPT, dtype=np.uint32).tolist())
        asked.stop.max_tokens = output
        asked.sampling.temperature = 0
        began, first_s = time.monotonic(), 0.0
        async for event in client.generate(asked, timeout_s=60.0):
            if event.HasField("delta"):
                first_s = first_s or time.monotonic() - began
        return first_s


async def decide(size: int, prompt: int, turns: int) -> float:
    """Microseconds of processor time of a decision among so many engines, each with parts of the prompts."""
    draw = np.random.default_rng(0)
    policy = Cost(seed=0)
    registry = Registry(lambda spec: cast(Server, None), lambda backend: asyncio.sleep(3600))
    router = Router(registry, PriorityGroups(policy))
    backends = [registry.add(BackendSpec(f"engine-{number}:1")) for number in range(size)]
    load = Load(kv_pages_total=65_536, page_size=16, kv_pages_in_use=100, waiting_tokens=0)
    load.running_requests = load.waiting_requests = 1
    prompts = [draw.integers(0, 128_000, prompt, dtype=np.uint32) for _ in range(20)]
    for backend in backends:
        backend.mark_ready()
        backend.observe_load(load)
        for one in prompts:
            part = Ask(one[: draw.integers(0, prompt)])
            policy.index.dispatched(backend.name, part.chain(16).hashes)
    router.pick(Ask(prompts[0]), "")
    gc.collect()
    gc.freeze()  # as a proxy does with what it starts with
    taken = []
    for turn in range(turns):
        backends[turn % size].observe_load(load)
        start = time.thread_time_ns()
        router.pick(Ask(prompts[turn % 20]), "")
        taken.append(time.thread_time_ns() - start)
    gc.unfreeze()
    return statistics.median(taken) / 1e3


def follow(size: int, messages: int) -> float:
    """Microseconds of processor time of one message of KV events, where so many engines are followed."""
    draw = np.random.default_rng(0)
    index = PrefixIndex()
    watches = [EngineEvents(index, f"engine-{number}") for number in range(size)]
    payloads = []
    for sequence in range(-(-messages // size) + 1):
        stored = KvStored(block_hashes=draw.integers(0, 2**63, EVENT_BLOCKS).tolist(), block_size=16)
        removed = KvRemoved(block_hashes=draw.integers(0, 2**63, EVENT_BLOCKS).tolist())
        message = WatchKvEventsResponse(sequence=sequence, instance_id="one")
        message.events.extend([KvEvent(stored=stored), KvEvent(removed=removed)])
        if not sequence:
            message.events.insert(0, KvEvent(cleared={}))
        payloads.append(message.SerializeToString())
    start, count = time.thread_time_ns(), 0
    for payload in payloads:
        for watch in watches:
            watch.apply(WatchKvEventsResponse.FromString(payload))
            count += 1
    return (time.thread_time_ns() - start) / 1e3 / count


def remember(size: int) -> float:
    """MiB of the prefix index where so many engines hold `CACHED_TOKENS` each, all of it different."""
    draw, process = np.random.default_rng(0), psutil.Process()
    index = PrefixIndex()
    gc.collect()
    before = process.memory_info().rss
    for number in range(size):
        name = f"engine-{number}"
        index.set_pool(name, CACHED_TOKENS, 16)
        index.set_exact(name, True)
        index.stored(name, draw.integers(0, 2**63, CACHED_TOKENS // 64).tolist())
    return (process.memory_info().rss - before) / 2**20


def line(points: Mapping[int, float], at: int = FAR) -> tuple[float, float]:
    """What a line through the points says: more per engine, and at so many engines."""
    slope, base = np.polyfit(list(points), list(points.values()), 1)
    return float(slope), float(base + slope * at)


def table(title: str, rows: Sequence[Sequence[object]]) -> None:
    """Print rows below each other."""
    print(f"\n{title}")
    for row in rows:
        print("  " + "".join(f"{one:>22.4g}" if isinstance(one, float) else f"{one!s:>22}" for one in row))


async def measure(sizes: Sequence[int], seconds: float, rate: float, turns: int) -> dict[str, Any]:
    """Everything."""
    live: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="rhizome-fleet-") as folder:
        for size in sizes:
            live[size] = await Fleet(size, Path(folder), seconds, rate).measure()
            print(f"{size} engines: " + ", ".join(f"{k} {v:.4g}" for k, v in live[size].items()), flush=True)
    names = list(live[sizes[0]])
    table("a proxy before simulated engines", [["engines", *names], *([n, *live[n].values()] for n in sizes)])
    parts: dict[int, dict[str, float]] = {}
    for size in PART_SIZES:
        # A process of its own: what others freed before would hide what is taken.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            memory_mib = pool.submit(remember, size).result()
        parts[size] = {
            "decision_512_us": await decide(size, 512, turns),
            "decision_8k_us": await decide(size, 8_192, turns),
            "kv_message_us": follow(size, 40 * turns),
            "index_mib": memory_mib,
        }
    table(
        "parts of it, alone",
        [["engines", *parts[1]], *([size, *row.values()] for size, row in parts.items())],
    )
    far = {}
    if len(sizes) > 1:
        for name in GROWING:
            slope, there = line({size: row[name] for size, row in live.items()})
            far[name] = {"per_engine": slope, f"at_{FAR}": there}
        table(
            f"drawn on to {FAR} engines",
            [["", "per engine", f"at {FAR}"], *([name, *row.values()] for name, row in far.items())],
        )
    return {"live": live, "parts": parts, "line": far}


def main() -> None:
    """Print tables, then one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="1,4,16,64", help="engines, comma-separated")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each thing is watched")
    parser.add_argument("--rate", type=float, default=30.0, help="requests per second at every size")
    parser.add_argument("--quick", action="store_true", help="to see that it runs; figures mean little")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    seconds, turns = (1.0, 50) if arguments.quick else (arguments.seconds, 1_000)
    result = asyncio.run(measure(sizes, seconds, arguments.rate, turns))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
