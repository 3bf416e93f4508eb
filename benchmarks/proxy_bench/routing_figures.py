"""Which engine a request goes to: prefix hits, balance, time, memory; measured by `benchmarks/routing.py`."""

from __future__ import annotations

from statistics import mean
from typing import Final

import routing
from proxy_bench.bench import Bench
from proxy_bench.figures import Figure

_SEEDS: Final = 3


async def measure(bench: Bench) -> list[Figure]:
    """Replay the trace, then the two micro-benchmarks."""
    limit = 1_500 if bench.quick else 12_031
    found = bench.trace.exists()
    source = bench.trace.name if found else "conversations by chance; --trace wants the file"

    def replayed(policy: str, view: str) -> dict[str, float]:
        rows = [routing.replay(policy, view, bench.trace, limit, seed) for seed in range(_SEEDS)]
        return {key: mean(row[key] for row in rows) for key in rows[0]}

    exact, events = replayed("cost", "exact"), replayed("cost", "events")
    guess, turns = replayed("cost", "guess"), replayed("round_robin", "none")
    others = {"exact view": exact["hit_ratio"], "round robin": turns["hit_ratio"]}
    figures = [
        Figure("prefix hits, KV events 50 ms late", events["hit_ratio"], "", others, f"trace: {source}"),
        Figure("the same, over the exact view's", events["hit_ratio"] / exact["hit_ratio"], ">= 0.95"),
        Figure("prefix hits without events, over the exact view's", guess["hit_ratio"] / exact["hit_ratio"]),
        Figure("busiest engine over the mean, requests", events["hotspot"], "<= 1.05"),
    ]
    if found and not bench.quick:
        over = events["hit_ratio"] / routing.REFERENCE_HIT_RATIO
        figures.append(Figure(f"prefix hits over {routing.REFERENCE_HIT_RATIO}", over, ">= 0.95"))
    times = await routing.decide(500 if bench.quick else 4_000)
    memory = routing.grow(50_000 if bench.quick else 1_000_000)
    return [
        *figures,
        Figure("decision, 64 engines, 32k tokens: p50 in µs", times["array"]["p50_us"]),
        Figure("decision, 64 engines, 32k tokens: p99 in µs", times["array"]["p99_us"], "<= 300"),
        Figure("from a request's bytes to its engine: p50 in µs", times["request"]["p50_us"]),
        Figure("from a request's bytes to its engine: p99 in µs", times["request"]["p99_us"], "<= 300"),
        Figure(
            f"resident bytes per distinct prompt, of {memory['prompts']:,}",
            memory["bytes_per_prompt"],
            "<= 1",
            note="slope over the second half; below 1 MB for a million prompts is the allocator's own unrest",
        ),
    ]
