"""Matrices in every format, and the operations of `Kernels`, beside float32."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu_bench.bench import Bench
from gpu_bench.checks.compare import Comparison, check, near
from gpu_bench.shapes import LlamaShape
from torch import Tensor

SMALL = (1, 8)
LARGE = (17, 96)
TOLERANCE = {"bfloat16": 8e-3, "int8": 1.6e-2, "int4": 8e-3, "int8-g": 8e-3, "fp8": 5e-2}
"""Of a product in bfloat16. Formats that round activations for large batches, int8 and fp8, err more."""
EPS = 1e-5


def run(bench: Bench, chosen: tuple[str, ...]) -> None:
    """Check operations and numbers of rows that a model uses.

    Args:
        bench: the device.
        chosen: beginnings of the names of formats.
    """
    from rhizome_engine.kernels.triton.triton_kernels import TritonKernels

    kernels = TritonKernels(bench.device, torch.bfloat16)
    if "bfloat16" in chosen:
        _elementwise(bench, kernels)
    for number, (name, weight_format) in enumerate(formats(bench).items()):
        if not any(name.startswith(each) and ("-" in each or "-" not in name) for each in chosen):
            continue
        products = matrices(bench.shape())
        # The interpreter is slow: one operation for each format shows that the script works.
        for part, rows, columns, use in products[number % 4 : number % 4 + 1] if bench.smoke else products:
            label = f"{name} {part} [{rows}, {columns}]"
            made: list[tuple[Any, Tensor]] = []
            check(bench, f"fill {label}", partial(_fill, kernels, weight_format, rows, columns, label, made))
            if not made:
                continue
            linear, dense = made[0]
            for count in (1, 3) if bench.smoke else (*SMALL, *LARGE):
                work = partial(use, kernels, linear, dense, count, _tolerance(name), label)
                check(bench, f"{use.__name__.strip('_')} {label}, {count} rows", work)
            del linear, dense, made


def formats(bench: Bench) -> dict[str, Any]:
    """Names of the formats that there are, with those of a checkpoint's groups."""
    from rhizome_engine.weights import format as module

    group = 32 if bench.smoke else 128
    found = {
        "bfloat16": module.Dense(torch.bfloat16),
        "int8": module.Int8(),
        f"int4-g{group}": module.Grouped(4, group),
        f"int8-g{group}": module.Grouped(8, group),
    }
    fp8 = getattr(module, "Fp8", None)
    return found | ({"fp8": fp8()} if fp8 is not None else {})


def _tolerance(name: str) -> float:
    return next(value for key, value in reversed(TOLERANCE.items()) if name.startswith(key))


def matrices(shape: LlamaShape) -> list[tuple[str, int, int, Callable[..., Comparison]]]:
    """Return the products of a layer and of a part of the head: what, rows, columns, the operation."""
    head = shape.head_dim or shape.hidden_size // shape.num_attention_heads
    hidden, inner = shape.hidden_size, shape.intermediate_size
    q, kv = shape.num_attention_heads * head, shape.num_key_value_heads * head
    found: list[tuple[str, int, int, Callable[..., Comparison]]] = [
        ("qkv", q + 2 * kv, hidden, _normed_linear),
        ("output", hidden, q, _add_linear),
        ("gate_up", 2 * inner, hidden, _gated_linear),
        ("down", hidden, inner, _add_linear),
        ("head", min(shape.vocab_size, 32064), hidden, _normed_linear),
        ("odd", 1000, hidden, _linear),
    ]
    return found


def _fill(
    kernels: Any, weight_format: Any, rows: int, columns: int, label: str, made: list[tuple[Any, Tensor]]
) -> Comparison:
    """Fill a matrix in two parts, and compare with the reference layout's idea of the same rows."""
    from rhizome_engine.kernels.torch_kernels import TorchKernels
    from rhizome_engine.layers.linear import Linear

    generator = torch.Generator(kernels.device).manual_seed(zlib.crc32(label.encode()))
    source = torch.randn(rows, columns, generator=generator, device=kernels.device) * columns**-0.5
    source = source.to(torch.bfloat16)
    linear = Linear(kernels, weight_format, columns, {"part": rows})
    middle = rows // 2 // 2 * 2
    linear.weight.fill(0, source[:middle])
    linear.weight.fill(middle, source[middle:])
    found = linear.weight.to_dense().to(kernels.device)
    reference = TorchKernels(kernels.device, torch.bfloat16).new_weight(weight_format, rows, columns)
    reference.fill(0, source)
    every = torch.arange(rows, device=kernels.device)
    made.append((linear, found))
    return near(found, reference.rows(every, torch.float32), 1e-3)  # scales may be kept in 16 bits


def _input(dense: Tensor, count: int, label: str, columns: int | None = None) -> Tensor:
    generator = torch.Generator(dense.device).manual_seed(count + zlib.crc32(label.encode()))
    width = columns or dense.shape[1]
    return torch.randn(count, width, generator=generator, device=dense.device).to(torch.bfloat16)


def _linear(kernels: Any, linear: Any, dense: Tensor, count: int, tolerance: float, label: str) -> Comparison:
    x = _input(dense, count, label)
    return near(kernels.linear(x, linear), x.float() @ dense.t(), tolerance)


def _normed_linear(
    kernels: Any, linear: Any, dense: Tensor, count: int, tolerance: float, label: str
) -> Comparison:
    x, norm = _input(dense, count, label), _norm(kernels, dense.shape[1])
    expected = F.rms_norm(x.float(), norm.gain.shape, norm.gain, EPS) @ dense.t()
    return near(kernels.linear(x, linear, norm), expected, tolerance)


def _gated_linear(
    kernels: Any, linear: Any, dense: Tensor, count: int, tolerance: float, label: str
) -> Comparison:
    x, norm = _input(dense, count, label), _norm(kernels, dense.shape[1])
    gate, up = (F.rms_norm(x.float(), norm.gain.shape, norm.gain, EPS) @ dense.t()).chunk(2, dim=-1)
    return near(kernels.gated_linear(x, linear, "silu", norm), F.silu(gate) * up, 2 * tolerance)


def _add_linear(
    kernels: Any, linear: Any, dense: Tensor, count: int, tolerance: float, label: str
) -> Comparison:
    x = _input(dense, count, label)
    residual = _input(dense, count, label + "r", len(dense))
    expected = residual.float() + x.float() @ dense.t()
    kernels.add_linear(residual, x, linear)
    return near(residual, expected, tolerance)


def _norm(kernels: Any, size: int) -> Any:
    from rhizome_engine.layers.rms_norm import RMSNorm

    norm = RMSNorm(size, EPS, device=kernels.device)
    generator = torch.Generator(kernels.device).manual_seed(size)
    norm.gain.copy_(1 + 0.1 * torch.randn(size, generator=generator, device=kernels.device))
    return norm


def _elementwise(bench: Bench, kernels: Any) -> None:
    """What stands around the products of large batches, and the embedding."""
    from rhizome_engine.kernels.triton.gating import gate
    from rhizome_engine.kernels.triton.norms import rms_norm
    from rhizome_engine.layers.linear import Linear
    from rhizome_engine.weights.format import Dense

    shape = bench.shape()
    for count in (2,) if bench.smoke else (1, 60, 512):
        norm = _norm(kernels, shape.hidden_size)
        x = _input(norm.gain[None], count, "norm")
        expected = F.rms_norm(x.float(), norm.gain.shape, norm.gain, EPS)
        check(
            bench,
            f"rms_norm, {count} rows",
            lambda x=x, n=norm, e=expected: near(rms_norm(x, n.gain, EPS), e, 5e-3),
        )
        residual = _input(norm.gain[None], count, "residual")

        def add_norm(
            residual: Tensor = residual, x: Tensor = x, norm: Any = norm, e: Tensor = expected
        ) -> Comparison:
            wanted = residual.float() + 0.5 * e
            kernels.add_norm(residual, x, norm, 0.5)
            return near(residual, wanted, 5e-3)

        check(bench, f"add_norm, {count} rows", add_norm)
        for activation in ("silu", "gelu_tanh"):
            x = _input(norm.gain[None], count, activation, 2 * shape.intermediate_size)
            left, right = x.float().chunk(2, dim=-1)
            left = F.silu(left) if activation == "silu" else F.gelu(left, approximate="tanh")
            expected = left * right
            check(
                bench,
                f"gate {activation}, {count} rows",
                lambda x=x, a=activation, e=expected: near(gate(x, a), e, 8e-3),
            )
        table = Linear(kernels, Dense(torch.bfloat16), shape.hidden_size, {"table": 1000})
        rows = _input(norm.gain[None], 1000, "table")
        table.weight.fill(0, rows)
        ids = torch.randint(0, 1000, (count,), device=bench.device)
        check(
            bench,
            f"embed, {count} rows",
            lambda t=table, i=ids, r=rows: near(kernels.embed(t.weight, i, 2.0), 2 * r[i].float(), 5e-3),
        )
