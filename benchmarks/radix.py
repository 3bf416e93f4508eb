"""Cost of the radix cache: eviction per node by number of leaves, and matching a long prompt.

    python benchmarks/radix.py

Leaves hang from one root with two pages each, the worst case for whoever keeps children or leaves in order.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache

PAGE_SIZE = 16
PAGES_PER_LEAF = 2
LEAVES = (1_000, 10_000, 40_000, 100_000)
VOCAB = 128_000


def fill(leaves: int, seed: int = 0) -> tuple[PagePool, RadixCache, float]:
    """A cache with that many leaves; also the microseconds per insertion."""
    pool = PagePool(leaves * PAGES_PER_LEAF, PAGE_SIZE)
    cache = RadixCache(pool)
    tokens = np.random.default_rng(seed).integers(
        0, VOCAB, (leaves, PAGE_SIZE * PAGES_PER_LEAF), dtype=np.int32
    )
    start = time.perf_counter()
    for row in tokens:
        cache.insert("", row, pool.allocate(PAGES_PER_LEAF))
    return pool, cache, (time.perf_counter() - start) / leaves * 1e6


def evict_us_per_node(leaves: int) -> tuple[float, float]:
    """Median microseconds to evict one node in batches of 100, and to insert one."""
    _, cache, insert_us = fill(leaves)
    times = []
    for _ in range(min(leaves // 200, 50)):
        start = time.perf_counter()
        freed = cache.evict(100 * PAGES_PER_LEAF)
        times.append((time.perf_counter() - start) / freed * PAGES_PER_LEAF * 1e6)
    return statistics.median(times), insert_us


def median_us(call: Callable[[], object], repeat: int = 200) -> float:
    """Median microseconds of one call."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)


def match_us(tokens: int, turns: int) -> float:
    """Microseconds to match a prompt that is cached as that many consecutive nodes."""
    pool = PagePool(2 * tokens // PAGE_SIZE, PAGE_SIZE)
    cache = RadixCache(pool)
    prompt = np.random.default_rng(1).integers(0, VOCAB, tokens, dtype=np.int32)
    for turn in range(1, turns + 1):
        end = tokens * turn // turns // PAGE_SIZE * PAGE_SIZE
        pool.free(cache.insert("", prompt[:end], pool.allocate(end // PAGE_SIZE)).duplicates)
    assert len(cache.match("", prompt).pages) == tokens // PAGE_SIZE
    return median_us(lambda: cache.match("", prompt))


def main() -> None:
    """Print a table, and the figures as one JSON line."""
    figures: dict[str, float] = {}
    print(f"{'leaves':>8}  {'insert us/node':>14}  {'evict us/node':>13}")
    for leaves in LEAVES:
        evict, insert = evict_us_per_node(leaves)
        name = f"{leaves // 1000}k"
        figures[f"insert_us_per_node_{name}"] = round(insert, 2)
        figures[f"evict_us_per_node_{name}"] = round(evict, 2)
        print(f"{leaves:>8}  {insert:>14.2f}  {evict:>13.2f}")
    for turns in (1, 10, 100):
        suffix = "" if turns == 1 else f"_{turns}_nodes"
        figures[f"match_us_32k{suffix}"] = round(match_us(32_768, turns), 1)
        print(f"match of a 32k prompt in {turns:>3} nodes: {figures[f'match_us_32k{suffix}']:.1f} us")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
