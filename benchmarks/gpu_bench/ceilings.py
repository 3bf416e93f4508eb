"""The two ceilings, measured first: bytes per second of the memory, operations per second of matrix units.

Copies count bytes read and bytes written; buffers are many times the second-level cache. Random data, since
zeros run faster than anything real. The read-only reduction is what a decode step resembles: weights are read
and hardly anything is written.
"""

from __future__ import annotations

import torch
from gpu_bench.bench import Bench


def run(bench: Bench) -> None:
    """Measure."""
    _memory(bench)
    size = 64 if bench.smoke else 8192
    dtypes = (
        [("bf16", torch.bfloat16)] if bench.smoke else [("bf16", torch.bfloat16), ("fp16", torch.float16)]
    )
    for name, dtype in dtypes:
        left, right = (torch.randn(size, size, device=bench.device).to(dtype) for _ in range(2))
        out = torch.empty(size, size, dtype=dtype, device=bench.device)
        seconds = bench.median_s(lambda left=left, right=right, out=out: torch.mm(left, right, out=out))
        bench.put(f"matmul_{name}_tflop_s", 2 * size**3 / seconds / 1e12)
    if bench.on_gpu:
        _eight_bits(bench, size)
        _launches(bench)


def _memory(bench: Bench) -> None:
    count = 2**12 if bench.smoke else 2**31  # elements of bfloat16: 4 GiB
    source = torch.empty(count, dtype=torch.bfloat16, device=bench.device).normal_()
    target = torch.empty_like(source)
    seconds = bench.median_s(lambda: target.copy_(source), repeat=10)
    bench.put("copy_bandwidth_tb_s", 2 * source.nbytes / seconds / 1e12)
    # Reads of a quarter at a time, in turn: a sum of 4 GiB at once would be read in one pass all the same.
    parts = source.view(4, -1).unbind(0)
    seconds = bench.median_s(lambda: [part.view(torch.int32).amax() for part in parts], repeat=10)
    bench.put("read_bandwidth_tb_s", source.nbytes / seconds / 1e12)


def _eight_bits(bench: Bench, size: int) -> None:
    """Rates of the narrow formats, where this PyTorch has them."""
    left = torch.randint(-128, 127, (size, size), dtype=torch.int8, device=bench.device)
    right = torch.randint(-128, 127, (size, size), dtype=torch.int8, device=bench.device)
    seconds = bench.median_s(lambda: torch._int_mm(left, right.t()))
    bench.put("matmul_int8_top_s", 2 * size**3 / seconds / 1e12)
    try:
        a = torch.randn(size, size, device=bench.device).to(torch.float8_e4m3fn)
        b = torch.randn(size, size, device=bench.device).to(torch.float8_e4m3fn)
        one = torch.ones((), device=bench.device)
        seconds = bench.median_s(lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16))
        bench.put("matmul_fp8_tflop_s", 2 * size**3 / seconds / 1e12)
    except (RuntimeError, AttributeError, TypeError) as error:
        bench.recorder.note(f"no fp8 product: {error}")


def _launches(bench: Bench) -> None:
    """What it costs to launch a kernel, alone and inside a graph: the floor of many small ones."""
    x = torch.zeros(128, device=bench.device)
    count = 200

    def many() -> None:
        for _ in range(count):
            x.add_(1.0)

    bench.put("launch_eager_us", bench.median_s(many) / count * 1e6)
    graph = torch.cuda.CUDAGraph()
    many()
    with torch.cuda.graph(graph):
        many()
    bench.put("launch_in_graph_us", bench.median_s(graph.replay) / count * 1e6)
