"""Cost of the radix cache: eviction per policy and number of leaves, long matches, misses, KV events.

    python benchmarks/radix.py [--no-model]

Leaves hang from one root with two pages each, the worst case for whoever keeps children or leaves in order.
Half of them, drawn at random, are looked up again before the first eviction, so that no policy finds them in
the order of insertion. A miss is compared with a decode step of one row of the 135M model of `engine_cpu.py`,
the shortest step there is: whatever else a step does makes the share smaller.

Only the last table has a listener: what KV events add while nobody has asked for them, and while somebody
watches and each insertion or eviction is a step of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rhizome_engine.core.kv_event_log import KvEventLog
from rhizome_engine.kvcache.eviction import EvictionPolicy, LazyHeapPolicy, eviction_policy
from rhizome_engine.kvcache.node import RadixNode
from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache
from rhizome_transport.block_hashes import block_hashes

PAGE_SIZE = 16
PAGES_PER_LEAF = 2
LEAVES = (1_000, 10_000, 40_000, 100_000)
LONG = 32_768
VOCAB = 128_000


class CheapestFirst(LazyHeapPolicy):
    """What somebody else's policy may look like: a key that changes with every use."""

    def key(self, node: RadixNode) -> float:
        """Uses per page."""
        return node.uses / len(node.pages)


class CheapestThenOldestFirst(LazyHeapPolicy):
    """The same with a tie-break: comparing pairs costs the heap more than comparing numbers."""

    def key(self, node: RadixNode) -> tuple[float, int]:
        """Uses per page, then recency."""
        return node.uses / len(node.pages), node.last_use


POLICIES: dict[str, Callable[[], EvictionPolicy]] = {
    "lru": lambda: eviction_policy("lru"),
    "lfu": lambda: eviction_policy("lfu"),
    "fifo": lambda: eviction_policy("fifo"),
    "custom": CheapestFirst,
    "custom_pair": CheapestThenOldestFirst,
}


def fill(
    leaves: int, policy: str, page_size: int = PAGE_SIZE, events: KvEventLog | None = None
) -> tuple[RadixCache, NDArray[np.int32], float]:
    """A cache with that many leaves, their tokens, and the microseconds per insertion."""
    gc.collect()  # the tree before, lest freeing it counts as filling this one
    pool = PagePool(leaves * PAGES_PER_LEAF, page_size)
    cache = RadixCache(pool, POLICIES[policy](), [] if events is None else [events])
    tokens = np.random.default_rng(0).integers(0, VOCAB, (leaves, page_size * PAGES_PER_LEAF), dtype=np.int32)
    # First tokens differ, so that there are as many leaves as asked for even where a page is one token.
    tokens[:, 0] = np.random.default_rng(1).permutation(leaves)
    start = time.thread_time()  # one long run: by the clock, whatever else is going on would be in it
    for row in tokens:
        cache.insert("", row, pool.allocate(PAGES_PER_LEAF))
        if events is not None:
            events.commit()
    return cache, tokens, (time.thread_time() - start) / leaves * 1e6


def evict_us_per_node(leaves: int, policy: str) -> tuple[float, float]:
    """Median microseconds to evict one node in batches of 100, and to insert one."""
    cache, tokens, insert_us = fill(leaves, policy)
    for row in np.random.default_rng(2).choice(leaves, leaves // 2, replace=False):
        cache.match("", tokens[row])
    times = []
    for _ in range(min(leaves // 200, 50)):
        start = time.perf_counter()
        freed = cache.evict(100 * PAGES_PER_LEAF)
        times.append((time.perf_counter() - start) / freed * PAGES_PER_LEAF * 1e6)
    return statistics.median(times), insert_us


def median_us(call: Callable[[], object], repeat: int = 500) -> float:
    """Median microseconds of one call."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)


def match_us(nodes: int, page_size: int) -> tuple[float, float]:
    """Microseconds to match, and to peek at, a long prompt that is cached as so many consecutive nodes."""
    pool = PagePool(2 * LONG // page_size, page_size)
    cache = RadixCache(pool)
    prompt = np.random.default_rng(3).integers(0, VOCAB, LONG, dtype=np.int32)
    for turn in range(1, nodes + 1):
        end = LONG * turn // nodes // page_size * page_size
        pool.free(cache.insert("", prompt[:end], pool.allocate(end // page_size)).duplicates)
    assert len(cache.match("", prompt).pages) == LONG // page_size
    assert cache.num_nodes == nodes
    return median_us(lambda: cache.match("", prompt)), median_us(lambda: cache.peek("", prompt))


def decode_step_us() -> float:
    """Least microseconds of a decode step of one row of a 135M-parameter Llama on this machine's CPU."""
    from engine_cpu import CONTEXT, SHAPE_135M, make_batch

    from rhizome_engine.runner import ModelRunner
    from rhizome_testing.checkpoints import write_llama_checkpoint

    with tempfile.TemporaryDirectory() as directory:
        runner = ModelRunner(
            write_llama_checkpoint(Path(directory), SHAPE_135M),
            device="cpu",
            dtype="float32",
            page_size=PAGE_SIZE,
            num_pages=2 * CONTEXT // PAGE_SIZE,
        )
        batch = make_batch(1, 1, CONTEXT)
        # The least of many: other load only makes a step longer, and a miss look cheaper.
        return min(median_us(lambda: runner.run(batch), repeat=1) for _ in range(50))


def measure_eviction(figures: dict[str, float]) -> None:
    """Every policy at every size; LRU's names carry no suffix."""
    print(f"{'policy':<12}{'leaves':>8}{'insert us/node':>16}{'evict us/node':>15}")
    for policy in POLICIES:
        suffix = "" if policy == "lru" else f"_{policy}"
        for leaves in LEAVES:
            evict, insert = evict_us_per_node(leaves, policy)
            size = f"{leaves // 1000}k"
            figures[f"insert_us_per_node_{size}{suffix}"] = round(insert, 2)
            figures[f"evict_us_per_node_{size}{suffix}"] = round(evict, 2)
            print(f"{policy:<12}{leaves:>8}{insert:>16.2f}{evict:>15.2f}")


def measure_matches(figures: dict[str, float]) -> None:
    """A long prompt that is cached whole."""
    print(f"\n{'32k prompt in':<16}{'page size':>10}{'match us':>10}{'peek us':>10}")
    for page_size in (PAGE_SIZE, 1):
        for nodes in (1, 10, 100):
            match, peek = match_us(nodes, page_size)
            name = "" if nodes == 1 else f"_{nodes}_nodes"
            name += "" if page_size == PAGE_SIZE else f"_page_{page_size}"
            figures[f"match_us_32k{name}"] = round(match, 1)
            figures[f"peek_us_32k{name}"] = round(peek, 1)
            print(f"{nodes:>3} {'nodes':<12}{page_size:>10}{match:>10.1f}{peek:>10.1f}")


def measure_misses(figures: dict[str, float], step_us: float | None) -> None:
    """Prompts of which nothing is cached, in a large tree."""
    print(f"\n{'miss, 40k leaves':<16}{'page size':>10}{'match us':>10}{'of a step':>11}")
    for page_size in (PAGE_SIZE, 1):
        cache, _, _ = fill(40_000, "lru", page_size)
        for length in (512, LONG):
            prompt = np.random.default_rng(4).integers(0, VOCAB, length, dtype=np.int32)
            prompt[0] = VOCAB  # no leaf begins like this
            assert cache.peek("", prompt) == 0
            miss = median_us(lambda prompt=prompt, cache=cache: cache.match("", prompt))
            name = f"{'32k' if length == LONG else length}" + ("" if page_size == PAGE_SIZE else "_page_1")
            figures[f"miss_us_{name}"] = round(miss, 2)
            share = ""
            if step_us:
                figures[f"miss_percent_of_step_{name}"] = round(100 * miss / step_us, 4)
                share = f"{100 * miss / step_us:.3f} %"
            print(f"{length:>6} {'tokens':<9}{page_size:>10}{miss:>10.2f}{share:>11}")


def measure_events(figures: dict[str, float], step_us: float | None) -> None:
    """What `WatchKvEvents` costs whoever computes, and what its readers and routers cost."""
    leaves = 10_000
    print(f"\n{'KV events':<16}{'insert us/node':>16}{'evict us/node':>15}")
    for name in ("none", "unwatched", "watched"):
        events = None if name == "none" else KvEventLog(leaves * PAGES_PER_LEAF, PAGE_SIZE)
        if events is not None and name == "watched":
            events.snapshot()
        cache, _, insert_us = fill(leaves, "lru", PAGE_SIZE, events)
        snapshot_us = median_us(events.snapshot, 20) if events is not None else 0.0
        start = time.thread_time()
        while cache.evict(PAGES_PER_LEAF):
            if events is not None:
                events.commit()
        evict_us = (time.thread_time() - start) / leaves * 1e6
        figures[f"events_{name}_insert_us"] = round(insert_us, 2)
        figures[f"events_{name}_evict_us"] = round(evict_us, 2)
        print(f"{name:<16}{insert_us:>16.2f}{evict_us:>15.2f}")
    added = sum(
        figures[f"events_watched_{kind}_us"] - figures[f"events_none_{kind}_us"]
        for kind in ("insert", "evict")
    )
    if step_us:
        figures["events_percent_of_step"] = round(100 * added / step_us, 3)
        share = f"{added:.0f} us more, {100 * added / step_us:.2f} % of a step"
        print(f"one insertion and one eviction, watched: {share}")
    figures["events_snapshot_us_20k_blocks"] = round(snapshot_us, 1)
    prompt = np.random.default_rng(5).integers(0, VOCAB, LONG, dtype=np.int32)
    figures["block_hashes_us_32k"] = round(median_us(lambda: block_hashes(prompt, PAGE_SIZE, "")), 1)
    print(f"a snapshot of 20k blocks: {snapshot_us / 1e3:.1f} ms")
    print(f"hashes of a 32k prompt: {figures['block_hashes_us_32k']:.0f} us")


def main() -> None:
    """Print tables, and the figures as one JSON line."""
    parser = argparse.ArgumentParser(description="Cost of the radix cache.")
    parser.add_argument("--no-model", action="store_true", help="do not measure the step to compare with")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    measure_eviction(figures)
    measure_matches(figures)
    step_us = None if arguments.no_model else decode_step_us()
    measure_misses(figures, step_us)
    measure_events(figures, step_us)
    if step_us:
        figures["decode_step_us_135m_1_row"] = round(step_us, 1)
        print(f"\na step: {step_us / 1e3:.2f} ms (135M Llama shape, float32, CPU, 1 row, context 256)")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
