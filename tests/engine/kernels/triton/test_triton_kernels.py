"""The operations of `TritonKernels` against those of `TorchKernels`, around the border of small batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rhizome_engine.kernels.torch_kernels import TorchKernels
from rhizome_engine.kernels.triton.dense import TritonDense
from rhizome_engine.kernels.triton.triton_kernels import TritonKernels
from rhizome_engine.layers.linear import Linear
from rhizome_engine.layers.rms_norm import RMSNorm
from rhizome_engine.weights.base import QuantisedRows
from rhizome_engine.weights.format import Dense

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HIDDEN, OUT = 40, 24
# Relative to the largest element; half precision is rounded in other places than PyTorch rounds it.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 4e-2}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
counts = pytest.mark.parametrize("n", [0, 1, 2, 16, 17])


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(kernels: TorchKernels | TritonKernels, rows: int, *, bias: bool) -> Linear:
    linear = Linear(kernels, Dense(kernels.activation_dtype), HIDDEN, {"part": rows}, bias=bias)
    linear.weight.fill(0, (random(1, rows, HIDDEN) / HIDDEN**0.5).to(DEVICE))
    if linear.bias is not None:
        linear.bias.copy_(random(2, rows))
    return linear


def norm(size: int) -> RMSNorm:
    made = RMSNorm(size, 1e-5, device=DEVICE)
    made.gain.copy_(random(3, size))
    return made


class Pair:
    """The same layer computed by both kernels."""

    def __init__(self, dtype: torch.dtype, rows: int, *, bias: bool) -> None:
        self.dtype = dtype
        self.kernels = (TorchKernels(DEVICE, dtype), TritonKernels(DEVICE, dtype))
        self.linears = [layer(kernels, rows, bias=bias) for kernels in self.kernels]

    def x(self, n: int, size: int = HIDDEN, seed: int = 5) -> Tensor:
        return random(seed, n, size).to(DEVICE, self.dtype)

    def check(self, expected: Tensor, found: Tensor) -> None:
        assert (found.shape, found.dtype) == (expected.shape, self.dtype)
        if expected.numel():
            error = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
            assert error <= TOLERANCE[self.dtype]


@dtypes
@counts
@pytest.mark.parametrize("dressed", [False, True], ids=["plain", "norm and bias"])
def test_linear(dtype: torch.dtype, n: int, dressed: bool) -> None:
    pair, before = Pair(dtype, OUT, bias=dressed), norm(HIDDEN) if dressed else None
    pair.check(
        *(k.linear(pair.x(n), linear, before) for k, linear in zip(pair.kernels, pair.linears, strict=True))
    )


@dtypes
@counts
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_linear(dtype: torch.dtype, n: int, activation: str) -> None:
    pair, before = Pair(dtype, 2 * OUT, bias=True), norm(HIDDEN)
    pair.check(
        *(
            k.gated_linear(pair.x(n), linear, activation, before)
            for k, linear in zip(pair.kernels, pair.linears, strict=True)
        )
    )


@dtypes
@counts
@pytest.mark.parametrize(("multiplier", "bias"), [(1.0, False), (0.22, True)])
def test_add_linear(dtype: torch.dtype, n: int, multiplier: float, bias: bool) -> None:
    pair, residuals = Pair(dtype, OUT, bias=bias), []
    for kernels, linear in zip(pair.kernels, pair.linears, strict=True):
        residuals.append(pair.x(n, OUT, seed=6))
        kernels.add_linear(residuals[-1], pair.x(n), linear, multiplier)
    pair.check(*residuals)


@dtypes
@pytest.mark.parametrize("n", [0, 1, 17])
def test_add_norm(dtype: torch.dtype, n: int) -> None:
    pair, residuals = Pair(dtype, OUT, bias=False), []
    for kernels in pair.kernels:
        residuals.append(pair.x(n, seed=6))
        kernels.add_norm(residuals[-1], pair.x(n), norm(HIDDEN), 0.22)
    pair.check(*residuals)


@dtypes
@pytest.mark.parametrize("multiplier", [1.0, 6.25])
def test_embed(dtype: torch.dtype, multiplier: float) -> None:
    pair, ids = Pair(dtype, OUT, bias=False), torch.tensor([0, 23, 7, 7], device=DEVICE)
    expected, found = (
        kernels.embed(linear.weight, ids, multiplier)
        for kernels, linear in zip(pair.kernels, pair.linears, strict=True)
    )
    if multiplier == 1.0:
        assert torch.equal(found, expected)
    pair.check(expected, found)


@pytest.mark.parametrize("n", [3, 17])
def test_rows_of_x_need_not_lie_together(n: int) -> None:
    pair, wide = Pair(torch.float32, OUT, bias=False), random(5, n, 3 * HIDDEN).to(DEVICE)
    x = wide[:, HIDDEN : 2 * HIDDEN]
    pair.check(
        *(k.linear(x, linear, norm(HIDDEN)) for k, linear in zip(pair.kernels, pair.linears, strict=True))
    )


def test_what_does_not_fit_is_refused() -> None:
    kernels = TritonKernels(DEVICE, torch.float32)
    with pytest.raises(ValueError, match=r"compute in torch\.float32, not bfloat16"):
        kernels.new_weight(Dense(torch.bfloat16), 2, 2)
    integers = QuantisedRows(torch.ones(1, 2, dtype=torch.int8), torch.ones(1, 1), None)
    with pytest.raises(TypeError, match="a float32 matrix takes no integers"):
        kernels.new_weight(Dense(torch.float32), 2, 2).fill_quantised(0, integers)
    other = TorchKernels(DEVICE, torch.float32).new_weight(Dense(torch.float32), 2, 2)
    with pytest.raises(AssertionError, match="made by other kernels"):
        kernels.embed(other, torch.zeros(1, dtype=torch.int64), 1.0)


def test_a_weight_says_what_it_takes_without_memory() -> None:
    kernels = TritonKernels(torch.device("meta"), torch.bfloat16)
    weight = kernels.new_weight(Dense(torch.bfloat16), 2048, 8192)
    assert isinstance(weight, TritonDense)
    assert weight.num_bytes == 2 * 2048 * 8192
    # Sums of sixteen rows, in at most eight parts, and the squares of x.
    assert weight.workspace_bytes == 8 * 16 * (2048 + 1) * 4


def test_a_filled_weight_is_what_was_filled_in() -> None:
    weight = TritonKernels(DEVICE, torch.bfloat16).new_weight(Dense(torch.bfloat16), 6, 5)
    rows = random(1, 6, 5).to(torch.bfloat16).to(DEVICE)
    weight.fill(2, rows[2:])
    weight.fill(0, rows[:2])
    assert torch.equal(weight.to_dense(), rows.float())
    assert torch.equal(weight.rows(torch.tensor([5, 0], device=DEVICE), torch.bfloat16), rows[[5, 0]])
