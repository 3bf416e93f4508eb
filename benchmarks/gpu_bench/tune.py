"""The best launch configuration of every product of a model, by trying all that the tables propose.

Nothing is tuned while serving. What wins here by more than noise is written into the tables by hand:
`OVERRIDES` in kernels/triton/configurations.py. Every candidate's result is held to the first one's. Matrices
are taken in turn from several copies, so that none is found in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gpu_bench.bench import Bench, SkipSection
from gpu_bench.checks.products import formats
from gpu_bench.shapes import LlamaShape

ROWS = (1, 8)
WORTH = 1.03
"""A candidate that is less than 3 % faster than the table's stays a candidate."""
L2_BYTES = 2**27


def run(bench: Bench) -> None:
    """Try all candidates of both shapes, in bfloat16 and int8."""
    from rhizome_engine.kernels.triton.runtime import why_not

    missing = why_not(bench.device)
    if missing is not None:
        raise SkipSection(missing)
    found: list[list[str]] = []
    for model in ("1b",) if bench.smoke else ("1b", "8b"):
        for format_name in ("bfloat16",) if bench.smoke else ("bfloat16", "int8"):
            weight_format = formats(bench)[format_name]
            found_products = products(bench.shape(model))
            for part, rows, columns, gated in found_products[:1] if bench.smoke else found_products:
                for count in ROWS[:1] if bench.smoke else ROWS:
                    with torch.inference_mode():
                        row = _best(bench, weight_format, rows, columns, count, gated=gated)
                    found.append([model, format_name, part, str(count), *row])
    header = ["model", "format", "product", "rows", "us", "TB/s", "best us", "configuration worth a line"]
    bench.recorder.table("products of small batches", header, found)


def products(shape: LlamaShape) -> list[tuple[str, int, int, bool]]:
    """Return name, rows, columns and whether gate and up lie in it."""
    head = shape.head_dim or shape.hidden_size // shape.num_attention_heads
    hidden, inner = shape.hidden_size, shape.intermediate_size
    q, kv = shape.num_attention_heads * head, shape.num_key_value_heads * head
    return [
        ("qkv", q + 2 * kv, hidden, False),
        ("output", hidden, q, False),
        ("gate_up", 2 * inner, hidden, True),
        ("down", hidden, inner, False),
        ("head", shape.vocab_size, hidden, False),
    ]


def _best(bench: Bench, weight_format: Any, rows: int, columns: int, count: int, *, gated: bool) -> list[str]:
    """Time every candidate of one product: the table's time and rate, the best time and its configuration."""
    from rhizome_engine.kernels.triton import configurations
    from rhizome_engine.kernels.triton.triton_kernels import TritonKernels
    from rhizome_engine.layers.linear import Linear
    from rhizome_engine.layers.rms_norm import RMSNorm

    kernels = TritonKernels(bench.device, torch.bfloat16)
    source = torch.randn(rows, columns, device=bench.device, dtype=torch.bfloat16) * columns**-0.5
    copies = 1 if bench.smoke else max(2, -(-3 * L2_BYTES // (rows * columns)))
    linears = [Linear(kernels, weight_format, columns, {"part": rows}) for _ in range(min(copies, 40))]
    for linear in linears:
        linear.weight.fill(0, source)
    norm = RMSNorm(columns, 1e-5, device=bench.device)
    norm.gain.fill_(1.0)
    x = torch.randn(count, columns, device=bench.device, dtype=torch.bfloat16)
    num_bytes = linears[0].weight.num_bytes
    shape = configurations.ProductShape(
        one_row=count == 1,
        outputs=rows // 2 if gated else rows,
        inputs=columns,
        itemsize=max(1, num_bytes // (rows * columns)),
        gated=gated,
    )

    def compute(linear: Any) -> torch.Tensor:
        if gated:
            return kernels.gated_linear(x, linear, "silu", norm)
        return kernels.linear(x, linear, norm)

    expected = compute(linears[0]).float()
    timed: list[tuple[float, str]] = []
    candidates = configurations.candidates(shape)
    for candidate in candidates[:3] if bench.smoke else candidates:
        configurations.OVERRIDES[shape] = candidate
        try:
            result = compute(linears[0]).float()
            error = float((result - expected).norm() / expected.norm())
            if not error < 1e-2:
                bench.recorder.check(
                    f"tune {candidate}", passed=False, detail=f"error {error:.1e} of {shape}"
                )
                continue
            timed.append((_seconds(bench, compute, linears), str(candidate)))
        except Exception as error:  # out of shared memory, say: another candidate may fit
            if "CUDA error" in str(error):
                raise
            bench.recorder.note(f"{candidate} of {shape}: {type(error).__name__}: {str(error)[:160]}")
        finally:
            configurations.OVERRIDES.pop(shape, None)
    if not timed:
        return ["-", "-", "-", "no candidate ran"]
    best, name = min(timed)
    usual = timed[0][0]
    worth = name if usual / best > WORTH else ""
    return [f"{1e6 * usual:.2f}", f"{num_bytes / usual / 1e12:.2f}", f"{1e6 * best:.2f}", worth]


def _seconds(bench: Bench, compute: Callable[[Any], torch.Tensor], linears: list[Any]) -> float:
    """Time of one product; on a GPU inside a graph, where launches cost next to nothing."""
    if not bench.on_gpu:
        return bench.median_s(lambda: compute(linears[0]), repeat=2, warm_up=0)
    for linear in linears[:2]:
        compute(linear)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for linear in linears:
            compute(linear)
    return bench.median_s(graph.replay, repeat=15, warm_up=2) / len(linears)
