"""Cost and quality of the proxy's routing: hit ratio on a trace, time per decision, memory.

    python benchmarks/routing.py [--trace FILE] [--requests N] [--prompts N] [--interpreted]

Hit ratio: 8 simulated engines of 1,000 blocks of 512 tokens run the trace in its own time. An engine keeps
its blocks by least recent use and serves a request in (tokens not cached) / 8,000 s + 20 ms per token of
output. The policies are the proxy's own, on real prompts and hashes, with one of three views of the caches:
exact (events at once), events (50 ms late), guess (no events). `hotspot` is the busiest engine's requests
over the mean, `work` its seconds.

Decision: CPU time of choosing one of 64 engines that report load and hold random parts of a prompt of 32,768
tokens. `array` is hashing and ordering of a prompt that is an array; `request` is all that the proxy does
from the serialised request to the engine. `place` follows a decision: the index takes the prompt in. `fixed`
is the same small loop each time, of which no percentile would be above another on an undisturbed machine.
Prompts are copied first: a proxy's have just come from a socket.
Memory: resident growth per distinct prompt, over the second half of so many. The last line is all of it as
JSON. All of it runs compiled, as in the proxy's image, unless `--interpreted`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import heapq
import itertools
import json
import os
import random
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
from proxy_bench.native import add_argument, start_compiled

from rhizome.engine.v1.generate_pb2 import GenerateRequest, TokenIds
from rhizome.engine.v1.load_pb2 import Load
from rhizome_backends.base import Server
from rhizome_backends.spec import BackendSpec
from rhizome_proxy.pool.backend import Backend, Lease
from rhizome_proxy.pool.registry import Registry
from rhizome_proxy.router import Router
from rhizome_routing.policies import POLICIES
from rhizome_routing.policies.ask import Ask
from rhizome_routing.policies.base import Policy
from rhizome_routing.policies.cost import Cost
from rhizome_routing.policies.groups import PriorityGroups
from rhizome_routing.prefix.index import PrefixIndex
from rhizome_transport.split_request import SplitRequest

BLOCK = 512
ENGINES = 8
SEEDS = 3
ENGINE_BLOCKS = 1_000
PREFILL_TOKENS_PER_S = 8_000
TOKEN_S = 0.020
EVENT_LAG_S = 0.050
TRACE = Path(
    os.environ.get("RHIZOME_TRACE", Path(__file__).parents[1] / "data" / "mooncake_conversation_trace.jsonl")
)
REFERENCE_HIT_RATIO = 0.172
FIXED_WORK = 10_000


def read_trace(path: Path, limit: int) -> Iterator[tuple[float, list[int], int]]:
    """When, ids of the blocks, tokens of output; conversations that grow where there is no file."""
    if path.exists():
        with path.open() as lines:
            for line in itertools.islice(lines, limit):
                row = json.loads(line)
                yield row["timestamp"] / 1000, row["hash_ids"], row["output_length"]
        return
    draw, fresh = random.Random(0), itertools.count(1)
    talks: list[list[int]] = []
    for number in range(limit):
        if not talks or draw.random() < 0.4:
            talks.append([0])
        talk = draw.choice(talks[-500:])
        talk.extend(next(fresh) for _ in range(draw.randint(1, 20)))
        yield number * 0.3, list(talk), draw.randint(10, 600)


def make_backends(count: int) -> list[Backend]:
    """Backends that nobody talks to."""
    return [Backend(BackendSpec(f"engine-{n}:1"), cast(Server, None)) for n in range(count)]


class SimulatedCache:
    """An engine's blocks; tells an index what changed."""

    def __init__(self) -> None:
        self.blocks: OrderedDict[int, None] = OrderedDict()

    def run(self, hashes: list[int]) -> tuple[int, list[int], list[int]]:
        """How many blocks were cached, which came and which went."""
        cached = next((n for n, one in enumerate(hashes) if one not in self.blocks), len(hashes))
        came = [one for one in hashes if one not in self.blocks]
        for one in reversed(hashes):
            self.blocks[one] = None
            self.blocks.move_to_end(one)
        went = [self.blocks.popitem(last=False)[0] for _ in range(len(self.blocks) - ENGINE_BLOCKS)]
        return cached, came, went


def replay(name: str, view: str, path: Path, limit: int, seed: int) -> dict[str, float]:
    """Run the trace with one policy."""
    now = 0.0
    policy: Policy = Cost(seed, clock=lambda: now) if name == "cost" else POLICIES[name]()
    index: PrefixIndex | None = policy.index if isinstance(policy, Cost) else None
    backends = make_backends(ENGINES)
    caches = {backend.name: SimulatedCache() for backend in backends}
    requests, work = dict.fromkeys(caches, 0), dict.fromkeys(caches, 0.0)
    if index is not None:
        for backend in backends:
            index.set_pool(backend.name, ENGINE_BLOCKS * BLOCK, BLOCK)
            index.set_exact(backend.name, view != "guess")
    later: list[tuple[float, int, Any]] = []
    order = itertools.count()
    hits = blocks = 0
    for at, ids, output in read_trace(path, limit):
        while later and later[0][0] <= at:
            now, _, action = heapq.heappop(later)
            action()
        now = at
        ask = Ask(np.repeat(np.array(ids, np.uint32), BLOCK), affinity_key=str(ids[1:2]))
        backend = policy.order(backends, ask)[0]
        lease, placement = backend.lease(), policy.place(backend, ask)
        hashes = ask.chain(BLOCK).hashes
        cached, came, went = caches[backend.name].run(hashes)
        hits, blocks = hits + cached, blocks + len(hashes)
        took_s = (len(hashes) - cached) * BLOCK / PREFILL_TOKENS_PER_S + output * TOKEN_S
        requests[backend.name] += 1
        work[backend.name] += took_s

        def finish(lease: Lease = lease, placement: Any = placement) -> None:
            lease.release()
            placement.end()

        heapq.heappush(later, (at + took_s, next(order), finish))
        if index is not None and view != "guess":

            def tell(name: str = backend.name, came: list[int] = came, went: list[int] = went) -> None:
                index.stored(name, came)
                index.removed(name, went)

            if view == "exact":
                tell()
            else:
                heapq.heappush(later, (at + EVENT_LAG_S, next(order), tell))
    return {
        "hit_ratio": round(hits / blocks, 4),
        "hotspot": round(max(requests.values()) * ENGINES / sum(requests.values()), 3),
        "work": round(max(work.values()) * ENGINES / sum(work.values()), 3),
    }


def percentiles(times_ns: list[int]) -> dict[str, int]:
    """Microseconds."""
    times = sorted(times_ns)
    return {"p50_us": times[len(times) // 2] // 1000, "p99_us": times[len(times) * 99 // 100] // 1000}


async def decide(turns: int = 4_000) -> dict[str, dict[str, int]]:
    """Time of decisions at 64 engines and 32k tokens."""
    tokens, draw = 32_768, np.random.default_rng(0)
    policy = Cost(seed=0)
    registry = Registry(lambda spec: cast(Server, None), lambda backend: asyncio.sleep(3600))
    router = Router(registry, PriorityGroups(policy))
    backends = [registry.add(BackendSpec(f"engine-{n}:1")) for n in range(64)]
    load = Load(kv_pages_total=65_536, page_size=16, kv_pages_in_use=100, waiting_tokens=0)
    load.running_requests = load.waiting_requests = 1
    prompts = [draw.integers(0, 128_000, tokens, dtype=np.uint32) for _ in range(20)]
    policy.order(backends, None)
    for backend in backends:
        backend.mark_ready()
        backend.observe_load(load)
        policy.order([backend], None)
        filler = draw.integers(0, 2**57, 4_000, dtype=np.uint64).tolist()
        policy.index.dispatched(backend.name, filler)
        for prompt in prompts:
            part = Ask(prompt[: draw.integers(0, tokens)])
            policy.index.dispatched(backend.name, part.chain(16).hashes)
    requests = [
        GenerateRequest(token_ids=TokenIds(ids=prompt.tolist())).SerializeToString() for prompt in prompts
    ]
    times: dict[str, list[int]] = {"array": [], "place": [], "request": [], "fixed": []}
    gc.collect()
    gc.freeze()  # a proxy freezes what it starts with
    clock = time.thread_time_ns
    for turn in range(turns):
        backends[turn % 64].observe_load(load)  # three reports a second of each, at 200 requests a second
        prompt = prompts[turn % 20].copy()
        start = clock()
        ask = Ask(prompt)
        first = policy.order(backends, ask)[0]
        times["array"].append(clock() - start)
        start = clock()
        placement = policy.place(first, ask)
        times["place"].append(clock() - start)
        placement.end()
        payload = bytes(bytearray(requests[turn % 20]))
        start = clock()
        asked = SplitRequest.parse(payload)
        router.pick(Ask.of_generation(asked), asked.head.model)
        times["request"].append(clock() - start)
        start = clock()
        sum(range(FIXED_WORK))
        times["fixed"].append(clock() - start)
    return {name: percentiles(taken) for name, taken in times.items()}


def grow(prompts: int) -> dict[str, float]:
    """Resident memory while distinct prompts pass."""
    policy, draw, process = Cost(seed=0), np.random.default_rng(0), psutil.Process()
    backends = make_backends(4)
    per_prompt, marks = 512, []
    for count in range(prompts + 1):
        if count % (prompts // 10) == 0:
            gc.collect()
            marks.append(process.memory_info().rss)
        ask = Ask(draw.integers(0, 128_000, per_prompt, dtype=np.uint32))
        policy.place(policy.order(backends, ask)[0], ask).end()
    warm = marks[len(marks) // 2 :]
    slope = float(np.polyfit(np.arange(len(warm)) * prompts / 10, warm, 1)[0])
    return {"prompts": prompts, "bytes_per_prompt": round(slope, 3), "rss_mib": round(marks[-1] / 2**20, 1)}


def main() -> None:
    """Run all, print JSON last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--requests", type=int, default=12_031)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    add_argument(parser)
    args = parser.parse_args()
    start_compiled(interpreted=args.interpreted)
    result: dict[str, Any] = {"trace": args.trace.name if args.trace.exists() else "synthetic", "replay": {}}
    runs = [(name, "none") for name in POLICIES if name != "cost"]
    runs += [("cost", view) for view in ("exact", "events", "guess")]
    for name, view in runs:
        seeds = [replay(name, view, args.trace, args.requests, seed) for seed in range(SEEDS)]
        row = {key: round(sum(one[key] for one in seeds) / SEEDS, 4) for key in seeds[0]}
        result["replay"][f"{name} {view}".removesuffix(" none")] = row
        print(f"{name:14} {view:7} {row}")
    exact = result["replay"]["cost events"]["hit_ratio"]
    result["of_reference"] = round(exact / REFERENCE_HIT_RATIO, 3) if args.trace.exists() else None
    result["decision"] = asyncio.run(decide())
    print(result["decision"])
    result["memory"] = grow(args.prompts)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
