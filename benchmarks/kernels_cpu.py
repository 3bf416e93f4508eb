"""How fast the CPU kernels multiply the matrices of a 135M-parameter Llama, beside PyTorch's float32 linear.

The matrices are multiplied in the order of a forward pass, layer by layer, so that weights come from memory
as in a real step, not from the cache. Of each call the fastest of several rounds counts, as what other
processes take off a core they take off single calls. Times include the call from Python, the norm before the
product and the activation or the sum after it; PyTorch's is the bare product.

    GB/s     weights read per second, to compare with the read bandwidth printed first
    GOP/s    multiplications and additions per second
    forward  30 layers and the head; the head for one row where there are more than 32

    python benchmarks/kernels_cpu.py [--formats int8,float32] [--rows 1,8,32,128,256] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rhizome_engine.kernels.native.library import load_library
from rhizome_engine.kernels.native.native_kernels import NativeKernels
from rhizome_engine.layers.linear import Linear
from rhizome_engine.layers.rms_norm import RMSNorm
from rhizome_engine.weights.format import Dense, Grouped, Int8, WeightFormat

LAYERS = 30
HIDDEN = 576
ROUNDING = "bfloat16-rounding"
"""Activations are rounded to bfloat16 as well, for processors that multiply it."""
FORMATS: dict[str, WeightFormat] = {
    "int8": Int8(),
    "float32": Dense(torch.float32),
    "bfloat16": Dense(torch.bfloat16),
    ROUNDING: Dense(torch.bfloat16),
    "float16": Dense(torch.float16),
    "int4": Grouped(4, 64),
    "int8-grouped": Grouped(8, 64),
}
BANDWIDTH_BYTES = 512 << 20
LEAST_ROUNDS = 5

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Shape:
    """One of the model's matrices."""

    name: str
    out_features: int
    in_features: int

    @property
    def elements(self) -> int:
        """Of the matrix."""
        return self.out_features * self.in_features

    def rows(self, rows: int) -> int:
        """A step of more rows than streams is a prefill, which needs the logits of one row."""
        return 1 if self.name == "head" and rows > 32 else rows


LAYER = (
    Shape("qkv", 960, HIDDEN),
    Shape("o", HIDDEN, HIDDEN),
    Shape("gate-up", 3072, HIDDEN),
    Shape("down", HIDDEN, 1536),
)
HEAD = Shape("head", 49152, HIDDEN)
ORDER = (*LAYER * LAYERS, HEAD)


class NativeModel:
    """The matrices in one format of our own kernels."""

    def __init__(self, kernels: NativeKernels, weight_format: WeightFormat) -> None:
        self.kernels = kernels
        self.norm = RMSNorm(HIDDEN, 1e-5, device=kernels.device)
        self.norm.gain.fill_(1)
        self.linears = []
        for shape in ORDER:
            linear = Linear(kernels, weight_format, shape.in_features, {shape.name: shape.out_features})
            linear.weight.fill(0, torch.randn(shape.out_features, shape.in_features) * 0.02)
            self.linears.append(linear)
        self.bytes_per_element = self.linears[-1].weight.num_bytes / HEAD.elements

    def calls(self, rows: int) -> list[Call]:
        """Return the calls of a forward pass."""
        inputs = {shape: torch.randn(shape.rows(rows), shape.in_features) for shape in ORDER}
        residual = torch.zeros(rows, HIDDEN)
        return [
            self._call(shape, linear, inputs[shape], residual)
            for shape, linear in zip(ORDER, self.linears, strict=True)
        ]

    def _call(self, shape: Shape, linear: Linear, x: Tensor, residual: Tensor) -> Call:
        if shape.name == "gate-up":
            return lambda: self.kernels.gated_linear(x, linear, "silu", self.norm)
        if shape.name in ("o", "down"):
            return lambda: self.kernels.add_linear(residual, x, linear)
        return lambda: self.kernels.linear(x, linear, self.norm)


class TorchModel:
    """The same with PyTorch's float32 product alone."""

    def __init__(self) -> None:
        self.weights = [torch.randn(shape.out_features, shape.in_features) * 0.02 for shape in ORDER]

    def calls(self, rows: int) -> list[Call]:
        """Return the calls of a forward pass."""
        inputs = {shape: torch.randn(shape.rows(rows), shape.in_features) for shape in ORDER}
        return [
            lambda x=inputs[shape], weight=weight: F.linear(x, weight)
            for shape, weight in zip(ORDER, self.weights, strict=True)
        ]


def fastest_s(calls: Sequence[Call], seconds: float) -> list[float]:
    """Return the fastest time of each call, all taking turns for so long."""
    best = [math.inf] * len(calls)
    until = time.perf_counter() + seconds
    rounds = 0
    while rounds < LEAST_ROUNDS or time.perf_counter() < until:
        for index, call in enumerate(calls):
            started = time.perf_counter()
            call()
            best[index] = min(best[index], time.perf_counter() - started)
        rounds += 1
    return best


def forward_s(model: NativeModel | TorchModel, rows: int, seconds: float) -> dict[str, float]:
    """Return what the matrices of each name take in one forward pass, all layers together."""
    total: defaultdict[str, float] = defaultdict(float)
    for shape, taken in zip(ORDER, fastest_s(model.calls(rows), seconds), strict=True):
        total[shape.name] += taken
    return dict(total)


def read_bandwidth() -> float:
    """Return the bytes per second at which the threads read memory."""
    data = torch.ones(BANDWIDTH_BYTES // 4)
    return BANDWIDTH_BYTES / fastest_s([data.sum], 2.0)[0]


def report(
    name: str, rows: int, mine: dict[str, float], theirs: dict[str, float], bytes_per_element: float
) -> None:
    """Print a line per shape and one for the forward pass."""
    for shape in (*LAYER, HEAD):
        copies = ORDER.count(shape)
        each_s = mine[shape.name] / copies
        gb_per_s = shape.elements * bytes_per_element / each_s / 1e9
        gop_per_s = 2 * shape.rows(rows) * shape.elements / each_s / 1e9
        print(
            f"{name:>17} {rows:4} rows  {shape.name:8} {each_s * 1e6:9.1f} us {gb_per_s:6.1f} GB/s"
            f" {gop_per_s:6.0f} GOP/s  torch float32 takes {theirs[shape.name] / mine[shape.name]:5.2f} x"
        )
    mine_s, theirs_s = sum(mine.values()), sum(theirs.values())
    print(
        f"{name:>17} {rows:4} rows  forward  {mine_s * 1e3:9.2f} ms {rows / mine_s:6.0f} tok/s"
        f"               torch float32 takes {theirs_s / mine_s:5.2f} x\n"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--formats", default="int8,float32", help=f"of {', '.join(FORMATS)}")
    parser.add_argument("--rows", default="1,8,32,128,256")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="per format and number of rows")
    options = parser.parse_args()
    all_rows = [int(n) for n in options.rows.split(",")]
    library = load_library()
    if library is None:
        raise SystemExit("no CPU kernels here")
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    library.set_num_threads(options.threads)
    bandwidth = read_bandwidth()
    print(f"{library.variant}, {options.threads} threads, read bandwidth {bandwidth / 1e9:.1f} GB/s\n")
    reference = TorchModel()
    theirs = {rows: forward_s(reference, rows, options.seconds) for rows in all_rows}
    del reference
    figures: dict[str, object] = {
        "variant": library.variant,
        "threads": options.threads,
        "torch": torch.__version__,
        "read_gb_per_s": round(bandwidth / 1e9, 1),
        **{f"torch_float32_{n}_rows_ms": round(sum(theirs[n].values()) * 1e3, 2) for n in all_rows},
    }
    for name in options.formats.split(","):
        model = NativeModel(NativeKernels(library, rounding=name == ROUNDING), FORMATS[name])
        for n in all_rows:
            mine = forward_s(model, n, options.seconds)
            report(name, n, mine, theirs[n], model.bytes_per_element)
            figures[f"{name}_{n}_rows_ms"] = round(sum(mine.values()) * 1e3, 2)
            ratio = sum(theirs[n].values()) / sum(mine.values())
            figures[f"torch_float32_over_{name}_{n}_rows_ratio"] = round(ratio, 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
