"""First tokens, long prompts, cached prefixes, and what prompts that arrive do to streams under way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from gpu_bench.bench import Bench

COLD = 60
LONG = 8192
PREFIX = 4096
GAP_STREAMS = 32


def run_first_token(bench: Bench) -> None:
    """A prompt of 60 tokens: the first one that an engine sees after its start, and later ones."""
    bench.drop_engine()
    engine = bench.engine()
    engine.warm_up()
    tokens = 12 if bench.smoke else COLD
    bench.put("first_token_60_cold_ms", 1e3 * engine.wave(engine.prompts(1, tokens), 1).first_s)
    second = engine.wave(engine.prompts(1, tokens), 1).first_s
    bench.put("first_token_60_second_ms", 1e3 * second)
    engine.record_graphs()
    times = []
    for _ in range(3 if bench.smoke else 40):
        times.append(engine.wave(engine.prompts(1, tokens), 1).first_s)
        engine.record_graphs()
    bench.put("first_token_60_warm_ms", 1e3 * statistics.median(times[len(times) // 2 :]))


def run_prefill(bench: Bench) -> None:
    """Prompts of 8k tokens in one step: tokens per second, and how much of the matrix units' rate that is."""
    engine = bench.engine()
    tokens = 96 if bench.smoke else LONG
    engine.wave(engine.prompts(1, tokens), 1)
    seconds = statistics.median(
        engine.wave(engine.prompts(1, tokens), 1).first_s for _ in range(1 if bench.smoke else 5)
    )
    _, rate = bench.ceilings()
    bench.put("prefill_8k_ms", 1e3 * seconds)
    bench.put("prefill_8k_tok_s", tokens / seconds)
    bench.put("prefill_8k_mfu_percent", 100 * engine.work.prefill_flops(tokens) / seconds / rate)


def run_cached_prefix(bench: Bench) -> None:
    """The first token of 4k cached tokens and 32 new ones, beside the same prompt with nothing cached."""
    engine = bench.engine()
    prefix, new = (64, 8) if bench.smoke else (PREFIX, 32)
    uncached, cached = [], []
    for _ in range(2 if bench.smoke else 6):
        (begin,) = engine.prompts(1, prefix)
        for times in (uncached, cached, cached):
            (end,) = engine.prompts(1, new)
            times.append(engine.wave([begin + end], 1).first_s)
    # The first round compiles; of the two cached ones after it, both count.
    uncached, cached = uncached[1:], cached[2:]
    bench.put("first_token_4k_uncached_ms", 1e3 * statistics.median(uncached))
    bench.put("first_token_4k_cached_ms", 1e3 * statistics.median(cached))
    bench.put("cached_prefix_speedup", statistics.median(uncached) / statistics.median(cached))


def run_gaps(bench: Bench) -> None:
    """Time between the tokens of 32 streams while prompts of 8k tokens arrive, by the size of a step."""
    engine = bench.engine()
    sizes = (64,) if bench.smoke else (512, 256, 1024)
    for size in sizes:
        streams, context = (3, 16) if bench.smoke else (GAP_STREAMS, 128)
        engine.new_core(max_step_tokens=size)
        calm = _gaps(engine, streams, context, prompts=0, bench=bench)
        busy = _gaps(engine, streams, context, prompts=1 if bench.smoke else 4, bench=bench)
        name = f"itl_32_streams_step_{size}"
        bench.put(f"{name}_calm_p50_ms", 1e3 * _quantile(calm, 0.5))
        bench.put(f"{name}_calm_p99_ms", 1e3 * _quantile(calm, 0.99))
        bench.put(f"{name}_p50_ms", 1e3 * _quantile(busy, 0.5))
        bench.put(f"{name}_p99_ms", 1e3 * _quantile(busy, 0.99))
        bench.put(f"{name}_p99_over_p50", _quantile(busy, 0.99) / _quantile(busy, 0.5))
        bench.put(f"{name}_p99_over_calm_p50", _quantile(busy, 0.99) / _quantile(calm, 0.5))
    engine.new_core()


def _gaps(engine: object, streams: int, context: int, prompts: int, bench: Bench) -> list[float]:
    """Gaps of the streams' tokens from the first prompt's arrival to the last one's first token."""
    from gpu_bench.engine import Engine

    assert isinstance(engine, Engine)
    length = 100 if bench.smoke else LONG
    output = 12 if bench.smoke else 4000
    last: dict[str, float] = {}
    gaps: list[float] = []
    counting, answered = False, 0

    def take(name: str, ids: Sequence[int]) -> None:
        nonlocal answered
        now = time.perf_counter()
        if name.startswith("prompt"):
            answered += 1
            return
        if counting and name in last:
            gaps.extend([now - last[name]] + [0.0] * (len(ids) - 1))
        last[name] = now

    for index, prompt in enumerate(engine.prompts(streams, context)):
        engine.submit(f"stream-{index}", prompt, output)
    while len(last) < streams or len(gaps) < streams * (1 if bench.smoke else 30):
        counting = len(last) == streams
        engine.step(take)
    if prompts:
        gaps.clear()
        for index, prompt in enumerate(engine.prompts(prompts, length)):
            engine.submit(f"prompt-{index}", prompt, 1)
            goal = answered + 1
            while answered < goal and engine.core.has_work:
                engine.step(take)
    for index in range(streams):
        engine.core.cancel(f"stream-{index}")
    while engine.core.has_work:
        engine.core.step()
    return gaps


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
