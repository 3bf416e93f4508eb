"""Products of one to sixteen rows with all that is fused into them, against plain PyTorch in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rhizome_engine.kernels.triton.configurations import Configuration
from rhizome_engine.kernels.triton.tile_product import tile_product
from rhizome_engine.kernels.triton.vector_product import vector_product

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Relative to the largest element: roundings of x and of the result (the interpreter cuts bfloat16 off).
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 3e-2}
EPS, MULTIPLIER = 1e-3, 0.22
VECTOR = Configuration(4, 64, 4)
TILE = Configuration(16, 32, 4, num_stages=2)


@dataclass(frozen=True)
class Product:
    """What is computed: sizes and what stands around the product."""

    rows: int = 1
    outputs: int = 20
    inputs: int = 70
    dtype: torch.dtype = torch.float32
    norm: bool = False
    bias: bool = False
    activation: str | None = None
    add: bool = False
    scale: float = 1.0
    gains: float = 1.0

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x, weight, gain, bias, residual."""
        generator = torch.Generator().manual_seed(self.rows * self.outputs + self.inputs)
        matrix_rows = self.outputs * (2 if self.activation else 1)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        x = (random(self.rows, self.inputs) * self.scale).to(DEVICE, self.dtype)
        weight = (random(matrix_rows, self.inputs) / self.inputs**0.5).to(DEVICE, self.dtype)
        bias = random(matrix_rows).to(DEVICE, self.dtype)
        residual = random(self.rows, self.outputs).to(DEVICE, self.dtype)
        gain = (random(self.inputs) * self.gains).to(DEVICE)
        return x, weight, gain, bias, residual

    def expected(self) -> Tensor:
        x, weight, gain, bias, residual = (tensor.double() for tensor in self.tensors())
        if self.norm:
            x = F.rms_norm(x, gain.shape, gain, EPS)
        y = F.linear(x, weight, bias if self.bias else None)
        if self.activation is not None:
            first, second = y.chunk(2, dim=-1)
            activated = F.silu(first) if self.activation == "silu" else F.gelu(first, approximate="tanh")
            y = activated * second
        return residual + MULTIPLIER * y if self.add else y

    def computed(self, how: Configuration, compute=None) -> Tensor:
        x, weight, gain, bias, residual = self.tensors()
        compute = compute or (vector_product if self.rows == 1 else tile_product)
        return compute(
            x,
            weight,
            gain if self.norm else None,
            EPS,
            bias if self.bias else None,
            self.activation,
            residual if self.add else None,
            MULTIPLIER,
            how,
        )

    def check(self, how: Configuration, compute=None) -> None:
        found, expected = self.computed(how, compute), self.expected()
        assert found.dtype == self.dtype
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert error <= TOLERANCE[self.dtype], (float(error), self, how)


# To shrink a failure would take minutes in the interpreter.
few = settings(max_examples=8, phases=(Phase.explicit, Phase.generate))
around = {
    "norm": st.booleans(),
    "bias": st.booleans(),
    "activation": st.sampled_from([None, "silu", "gelu_tanh"]),
    "add": st.booleans(),
    "dtype": st.sampled_from(list(TOLERANCE)),
}


@given(
    product=st.builds(Product, outputs=st.integers(1, 40), inputs=st.integers(1, 100), **around),
    block_n=st.sampled_from([4, 16]),
    block_k=st.sampled_from([16, 64, 256]),
)
@example(product=Product(outputs=8, inputs=128, norm=True, activation="silu"), block_n=4, block_k=64)
@few
def test_one_row(product: Product, block_n: int, block_k: int) -> None:
    product.check(Configuration(block_n, block_k, 4))


@given(
    product=st.builds(
        Product, rows=st.integers(1, 16), outputs=st.integers(1, 40), inputs=st.integers(1, 100), **around
    ),
    block_n=st.sampled_from([16, 32]),
    block_k=st.sampled_from([16, 64]),
    split_k=st.sampled_from([1, 2, 4]),
)
@example(product=Product(5, inputs=96, norm=True, add=True), block_n=16, block_k=32, split_k=4)
@example(product=Product(16, inputs=64, norm=True, activation="silu"), block_n=16, block_k=16, split_k=2)
@few
def test_several_rows(product: Product, block_n: int, block_k: int, split_k: int) -> None:
    product.check(Configuration(block_n, block_k, 4, num_stages=2, split_k=split_k), tile_product)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_norm_of_large_inputs_overflows_nowhere(rows: int, dtype: torch.dtype) -> None:
    """A residual stream in float16 may reach thousands; times its gain it would be too much."""
    product = Product(rows, dtype=dtype, norm=True, scale=12000.0, gains=4.0)
    product.check(VECTOR if rows == 1 else TILE)


@pytest.mark.parametrize("split_k", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_is_the_same_bits_whatever_its_neighbours(split_k: int, dtype: torch.dtype) -> None:
    how = replace(TILE, split_k=split_k)
    x, weight, gain, _, _ = Product(13, inputs=128, dtype=dtype).tensors()

    def computed(rows: Tensor) -> Tensor:
        return tile_product(rows.contiguous(), weight, gain, EPS, None, None, None, 1.0, how)

    together = computed(x)
    assert torch.equal(together, computed(x))
    assert torch.equal(together[5:7], computed(x[5:7]))
    assert torch.equal(together[[12, 0]], computed(x[[12, 0]]))


@pytest.mark.parametrize("rows", [1, 6])
def test_the_residual_is_written_in_place(rows: int) -> None:
    x, weight, _, _, residual = Product(rows).tensors()
    compute, how = (vector_product, VECTOR) if rows == 1 else (tile_product, TILE)
    returned = compute(x, weight, None, 0.0, None, None, residual, 1.0, how)
    assert returned.data_ptr() == residual.data_ptr()


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_scales_of_the_rows_multiply_before_the_bias(rows: int, activation: str | None) -> None:
    product = Product(rows, dtype=torch.float16, bias=True, activation=activation, outputs=16)
    x, weight, _, bias, _ = product.tensors()
    scales = torch.rand(len(weight), device=DEVICE) * 0.01 + 0.001
    whole = torch.round(weight.float() * 100).clamp(-127, 127).to(torch.int8)
    compute, how = (vector_product, VECTOR) if rows == 1 else (tile_product, TILE)
    found = compute(x, whole, None, 0.0, bias, activation, None, 1.0, how, scales)
    y = F.linear(x.double(), whole.double() * scales.double()[:, None], bias.double())
    if activation:
        first, second = y.chunk(2, dim=-1)
        y = F.silu(first) * second
    assert (found.double() - y).abs().max() <= 2e-3 * y.abs().max()
