"""The table of goals, and what was reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpu_bench.figures import Results


@dataclass(frozen=True)
class Goal:
    """A row of the table.

    Attributes:
        what: the figure in words.
        keys: figures that say it, with the unit to show behind each.
        goal: in words.
        reached: says from the results whether it was, None where nothing was measured.
        published: what RustInfer publishes.
    """

    what: str
    keys: tuple[tuple[str, str], ...]
    goal: str
    reached: Callable[[Results], bool | None]
    published: str = "–"


def at_least(key: str, least: float) -> Callable[[Results], bool | None]:
    """Reached where a figure is so large."""

    def reached(results: Results) -> bool | None:
        value = results.number(key)
        return None if value is None else value >= least

    return reached


def at_most(key: str, most: float) -> Callable[[Results], bool | None]:
    """Reached where a figure is so small."""

    def reached(results: Results) -> bool | None:
        value = results.number(key)
        return None if value is None else value <= most

    return reached


def all_of(*goals: Callable[[Results], bool | None]) -> Callable[[Results], bool | None]:
    """Reached where all are; None where one was not measured and none failed."""

    def reached(results: Results) -> bool | None:
        found = [goal(results) for goal in goals]
        if False in found:
            return False
        return None if None in found else True

    return reached


def ahead_of_transformers(results: Results) -> bool | None:
    """Whether every ratio to transformers is above 1."""
    ratios = [results.number(name) for name in results.figures if name.startswith("times_transformers_")]
    return all(ratio is not None and ratio > 1 for ratio in ratios) if ratios else None


GOALS = (
    Goal(
        "copy bandwidth and bf16 matmul rate",
        (
            ("copy_bandwidth_tb_s", "TB/s"),
            ("read_bandwidth_tb_s", "TB/s read"),
            ("matmul_bf16_tflop_s", "TFLOP/s"),
        ),
        "–",
        lambda _results: None,
    ),
    Goal(
        "decode, 1 stream, bf16",
        (("decode_bf16_1_stream_tok_s", "tok/s"), ("decode_bf16_of_bandwidth_percent", "% of bandwidth")),
        "≥ 1,000 tok/s (≥ 55 %), stretch 1,500",
        all_of(
            at_least("decode_bf16_1_stream_tok_s", 1000), at_least("decode_bf16_of_bandwidth_percent", 55)
        ),
        "436 (22 %); 829 on an H20",
    ),
    Goal(
        "the same, int8",
        (("decode_int8_1_stream_tok_s", "tok/s"), ("decode_int8_of_bandwidth_percent", "%")),
        "≥ 1,400",
        at_least("decode_int8_1_stream_tok_s", 1400),
    ),
    Goal(
        "the same, int4",
        (("decode_int4_1_stream_tok_s", "tok/s"), ("decode_int4_of_bandwidth_percent", "%")),
        "≥ 1,600",
        at_least("decode_int4_1_stream_tok_s", 1600),
        "912 (AWQ, H20)",
    ),
    Goal(
        "the same, fp8",
        (("decode_fp8_1_stream_tok_s", "tok/s"), ("decode_fp8_of_bandwidth_percent", "%")),
        "–",
        lambda _results: None,
    ),
    Goal(
        "first token, 60-token prompt, cold and warm",
        (("first_token_60_cold_ms", "ms"), ("first_token_60_warm_ms", "ms")),
        "≤ 15 ms, ≤ 3 ms",
        all_of(at_most("first_token_60_cold_ms", 15), at_most("first_token_60_warm_ms", 3)),
        "57 ms, 2.0 ms",
    ),
    Goal(
        "prefill of 8k tokens",
        (("prefill_8k_tok_s", "tok/s"), ("prefill_8k_mfu_percent", "% MFU")),
        "≥ 150,000 tok/s",
        at_least("prefill_8k_tok_s", 150_000),
        "1,052 tok/s",
    ),
    *(
        Goal(
            f"{streams} streams, 512 in, 256 out",
            (
                (f"streams_{streams}_tok_s", "tok/s"),
                (f"streams_{streams}_of_roofline_percent", "% of the roofline"),
            ),
            "≥ 60 % of the roofline" if streams == 256 else "–",
            at_least("streams_256_of_roofline_percent", 60) if streams == 256 else lambda _results: None,
        )
        for streams in (32, 128, 256)
    ),
    Goal(
        "first token with a 4k cached prefix against none",
        (
            ("first_token_4k_cached_ms", "ms"),
            ("first_token_4k_uncached_ms", "ms"),
            ("cached_prefix_speedup", "×"),
        ),
        "≥ 5×",
        at_least("cached_prefix_speedup", 5),
    ),
    Goal(
        "ITL of 32 streams while 8k prompts arrive",
        (
            ("itl_32_streams_step_512_p50_ms", "ms p50"),
            ("itl_32_streams_step_512_p99_ms", "ms p99"),
            ("itl_32_streams_step_512_p99_over_p50", "×"),
        ),
        "p99 ≤ 3 × p50",
        at_most("itl_32_streams_step_512_p99_over_p50", 3),
    ),
    Goal(
        "weights to GPU; process start to ready",
        (
            ("weights_to_gpu_s", "s"),
            ("weights_to_gpu_gb_s", "GB/s"),
            ("start_cold_to_ready_s", "s with nothing compiled"),
            ("start_warm_to_ready_s", "s"),
        ),
        "≤ 2 s, ≤ 5 s",
        all_of(at_most("weights_to_gpu_s", 2), at_most("start_cold_to_ready_s", 5)),
        "1.9–5 s",
    ),
    Goal(
        "transformers, 1 stream: eager, static cache",
        (
            ("times_transformers_eager_1_stream", "×"),
            ("times_transformers_static_eager_1_stream", "×"),
            ("times_transformers_static_compiled_1_stream", "× compiled"),
        ),
        "ahead of all",
        ahead_of_transformers,
    ),
    Goal(
        "transformers, 32 streams: eager decode, continuous batching",
        (("times_transformers_eager_32_decode", "×"), ("times_transformers_continuous_32", "×")),
        "ahead of all",
        ahead_of_transformers,
    ),
    Goal(
        "one stream through HTTP, gateway and engine",
        (("http_zmq_1_stream_tok_s", "tok/s"), ("http_grpc_1_stream_tok_s", "tok/s over gRPC")),
        "–",
        lambda _results: None,
    ),
)


def goal_rows(results: Results) -> list[list[str]]:
    """The table's rows: figure, published, goal, measured, reached."""
    rows = []
    for goal in GOALS:
        shown = []
        for key, unit in goal.keys:
            value = results.figures.get(key)
            if value is not None:
                shown.append(f"{_number(value)} {unit}")
        verdict = {True: "yes", False: "no", None: "–"}[goal.reached(results) if shown else None]
        rows.append([goal.what, goal.published, goal.goal, ", ".join(shown) or "not measured", verdict])
    return rows


def _number(value: float | int | str) -> str:
    if isinstance(value, str):
        return value
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
