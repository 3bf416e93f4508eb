"""One stream: tokens per second by weight format, beside what the memory could deliver."""

from __future__ import annotations

import os
from typing import Any

import torch
from gpu_bench.bench import Bench, SkipSection
from gpu_bench.kernel_times import step_breakdown

PROMPT = 128
FORMATS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "int8": {"quantization": "int8"},
    "int4": {"quantization": "int4"},
    "fp8": {"quantization": "fp8"},
}


def run_bf16(bench: Bench) -> None:
    """The checkpoint as it is."""
    _measure(bench, "bf16", "1b")


def run_int8(bench: Bench) -> None:
    """8-bit integers."""
    _measure(bench, "int8", "1b")


def run_int4(bench: Bench) -> None:
    """4-bit integers in groups."""
    _measure(bench, "int4", "1b")


def run_fp8(bench: Bench) -> None:
    """8-bit floating point."""
    _measure(bench, "fp8", "1b")


def run_eager(bench: Bench) -> None:
    """bfloat16 without recorded steps, and with PyTorch's kernels: what graphs and kernels bring."""
    for name, options in (
        ("eager", {"graphs": "off"}),
        ("torch_kernels", {"kernels": "torch", "attention": "sdpa"}),
    ):
        engine = bench.engine(**options)
        engine.ready_for(1, _prompt(bench))
        wave = engine.best_wave(1, _prompt(bench), _output(bench) // 2, repeat=1)
        bench.put(f"decode_bf16_{name}_1_stream_tok_s", wave.decode_tok_s)


def run_dependent(bench: Bench) -> None:
    """bfloat16 with kernels that start before the one ahead has ended, which is off otherwise."""
    os.environ["RHIZOME_DEPENDENT_LAUNCHES"] = "1"  # read when the kernels are imported: this process is new
    engine = bench.engine()
    engine.ready_for(1, _prompt(bench))
    wave = engine.best_wave(1, _prompt(bench), _output(bench), repeat=1 if bench.smoke else 3)
    bench.put("decode_bf16_dependent_1_stream_tok_s", wave.decode_tok_s)
    step_breakdown(bench, engine, "decode_bf16_dependent", _prompt(bench))


def run_8b(bench: Bench) -> None:
    """The 8B shape, bfloat16 and fp8."""
    for name in ("bf16",) if bench.smoke else ("bf16", "fp8"):
        _measure(bench, name, "8b", prefix="8b_")


def _prompt(bench: Bench) -> int:
    return 16 if bench.smoke else PROMPT


def _output(bench: Bench) -> int:
    return 6 if bench.smoke else 512


def _measure(bench: Bench, name: str, model: str, prefix: str = "") -> None:
    from rhizome_engine.weights.choose import QUANTIZATIONS

    options = FORMATS[name]
    if options.get("quantization", "none") not in QUANTIZATIONS:
        raise SkipSection(f"this checkout has no --quantization {name}")
    if bench.smoke and name == "fp8":  # for which a CPU has no kernels of its own
        options = {**options, "kernels": "torch"}
    engine = bench.engine(model, **options)
    label = f"{prefix}decode_{name}"
    bench.recorder.note(
        f"{label}: {engine.runner.weights_name}, kernels {engine.runner.numerics.kernels.name}, "
        f"attention {engine.runner.attention.name}"
    )
    weights = next((stage for stage in engine.times.stages if stage.name == "weights"), None)
    if weights is not None:
        bench.put(f"{label}_load_weights_s", weights.seconds)
    prompt, output = _prompt(bench), _output(bench)
    engine.ready_for(1, prompt)
    wave = engine.best_wave(1, prompt, output, repeat=1 if bench.smoke else 3)
    speed = wave.decode_tok_s
    bench.put(f"{label}_1_stream_tok_s", speed)
    bench.put(f"{label}_step_us", 1e6 / speed)
    bandwidth, _ = bench.ceilings()
    moved = engine.work.step_bytes(1, prompt + output / 2)
    bench.put(f"{label}_step_bytes", int(moved))
    bench.put(f"{label}_of_bandwidth_percent", 100 * moved * speed / bandwidth)
    if bench.on_gpu:
        bench.put(f"{label}_gpu_memory_gib", torch.cuda.max_memory_allocated() / 2**30)
    step_breakdown(bench, engine, label, prompt)
