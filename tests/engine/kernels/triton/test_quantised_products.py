"""Matrices of few bits on a GPU, held to float64 of what the reference's matrix stands for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rhizome_engine.kernels.torch_kernels import TorchKernels
from rhizome_engine.kernels.triton.dequantised_product import dequantised_product
from rhizome_engine.kernels.triton.grouped_words import pack
from rhizome_engine.kernels.triton.quantised import new_quantised_weight
from rhizome_engine.kernels.triton.round_rows import round_rows
from rhizome_engine.kernels.triton.weight import TritonWeight
from rhizome_engine.weights.base import QuantisedRows
from rhizome_engine.weights.format import Dense, Fp8, Grouped, Int8, WeightFormat
from rhizome_engine.weights.rounding import quantise_rows_grouped, round_to_fp8, round_to_int8
from rhizome_engine.weights.torch_weights import TorchWeight

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")
FORMATS: list[WeightFormat] = [
    Int8(),
    Fp8(),
    Grouped(4, 32),
    Grouped(4, 128),
    Grouped(8, 64),
    Grouped(4, 24),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Relative to the norm of what is expected. The interpreter cuts bfloat16 off instead of rounding it.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}
ROUNDED = {Int8: 0.012, Fp8: 0.04}
"""What rounding activations as well may cost."""
EPS = 1e-5


@dataclass
class Pair:
    """A matrix on the GPU and the reference's of the same contents."""

    weight: TritonWeight
    reference: TorchWeight


def make_pair(weight_format: WeightFormat, n: int, k: int, dtype: torch.dtype) -> Pair:
    generator = torch.Generator().manual_seed(n + k)
    rows = torch.randn(n, k, generator=generator) / k**0.5
    weight = new_quantised_weight(weight_format, n, k, DEVICE, dtype)
    reference = TorchKernels(CPU, torch.float32).new_weight(weight_format, n, k)
    half = n // 2
    for each in (weight, reference):  # in two blocks, the second one first
        each.fill(half, rows[half:])
        each.fill(0, rows[:half])
    return Pair(weight, reference)


def inputs_of(weight_format: WeightFormat) -> int:
    """Ragged where the format lets it be."""
    return 3 * weight_format.group_size if isinstance(weight_format, Grouped) else 203


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double().cpu() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
def test_products_are_those_of_what_the_matrix_stands_for(weight_format, dtype):
    n, k = 37, inputs_of(weight_format)
    pair = make_pair(weight_format, n, k, dtype)
    dense = pair.reference.to_dense().double()
    for rows in (1, 2, 7, 16) if dtype == torch.float32 else (1, 7):
        x = torch.randn(rows, k, generator=torch.Generator().manual_seed(rows)).to(dtype)
        found = pair.weight.product(x.to(DEVICE))
        assert (found.dtype, found.shape) == (dtype, (rows, n))
        assert error(found, x.double() @ dense.T) < TOLERANCE[dtype]
    assert pair.weight.product(torch.empty(0, k, dtype=dtype, device=DEVICE)).shape == (0, n)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
def test_large_batches_agree_with_the_reference(weight_format, dtype):
    """Where activations are rounded too, they are rounded as the reference rounds them."""
    k = 3 * weight_format.group_size if isinstance(weight_format, Grouped) else 208
    pair = make_pair(weight_format, 48, k, dtype)
    rows = 70 if isinstance(weight_format, Grouped) and weight_format.bits == 8 else 17
    x = torch.randn(rows, k, generator=torch.Generator().manual_seed(5)).to(dtype)
    found = pair.weight.product(x.to(DEVICE))
    assert error(found, pair.reference.product(x.float()).double()) < TOLERANCE[dtype]
    exact = x.double() @ pair.reference.to_dense().double().T
    assert error(found, exact) < ROUNDED.get(type(weight_format), 0) + TOLERANCE[dtype]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_format", [Int8(), Fp8(), Grouped(4, 32), Grouped(8, 32)], ids=str)
def test_what_stands_around_a_product_is_computed_with_it(weight_format, dtype, rows):
    n, k = 26, 96
    pair = make_pair(weight_format, n, k, dtype)
    generator = torch.Generator().manual_seed(rows)
    x = (3 * torch.randn(rows, k, generator=generator)).to(dtype)
    gain = torch.randn(k, generator=generator)
    bias = torch.randn(n, generator=generator).to(dtype)
    residual = torch.randn(rows, n, generator=generator).to(dtype)
    normed = F.rms_norm(x.double(), (k,), gain.double(), EPS)
    y = normed @ pair.reference.to_dense().double().T + bias.double()
    x, gain, bias = x.to(DEVICE), gain.to(DEVICE), bias.to(DEVICE)
    gate, up = y.chunk(2, dim=1)
    for activation, expected in (
        ("silu", F.silu(gate) * up),
        ("gelu_tanh", F.gelu(gate, approximate="tanh") * up),
    ):
        found = pair.weight.small_product(x, gain=gain, eps=EPS, bias=bias, activation=activation)
        assert error(found, expected) < 2 * TOLERANCE[dtype]
    target = residual.clone().to(DEVICE)
    found = pair.weight.small_product(x, gain=gain, eps=EPS, bias=bias, residual=target, multiplier=0.25)
    assert found.data_ptr() == target.data_ptr()
    assert error(found, residual.double() + 0.25 * y) < TOLERANCE[dtype]


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
def test_a_row_does_not_depend_on_those_beside_it_nor_on_the_run(weight_format):
    k = inputs_of(weight_format)
    pair = make_pair(weight_format, 20, k, torch.bfloat16)
    x = torch.randn(16, k).bfloat16().to(DEVICE)
    whole = pair.weight.product(x)
    assert torch.equal(pair.weight.product(x), whole)
    assert torch.equal(pair.weight.product(x[3:5]), whole[3:5])


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
def test_rows_are_looked_up_and_those_that_are_not_there_are_zeros(weight_format):
    k = inputs_of(weight_format)
    pair = make_pair(weight_format, 11, k, torch.float32)
    expected = pair.reference.to_dense()
    assert torch.allclose(pair.weight.to_dense().cpu(), expected, rtol=1e-5, atol=1e-7)
    found = pair.weight.rows(torch.tensor([10, 0, 3, 3, -1, 11], device=DEVICE), torch.float32).cpu()
    assert torch.allclose(found[:4], expected[[10, 0, 3, 3]], rtol=1e-5, atol=1e-7)
    assert not found[4:].any()


def test_16_bit_scales_are_off_by_little_whatever_the_size_of_the_weights():
    """Also where float16 could hold neither the scales nor the offsets as they are."""
    rows = torch.randn(8, 256) * torch.logspace(-20, 20, 8)[:, None]
    for bits, most in ((4, 2**-7), (8, 2**-4)):
        quantised = quantise_rows_grouped(rows, bits, 64)
        assert quantised.offsets is not None
        weight = new_quantised_weight(Grouped(bits, 64), 8, 256, DEVICE, torch.bfloat16)
        weight.fill_quantised(0, quantised)
        exact = quantised.q.view(8, 4, 64) * quantised.scales[..., None] + quantised.offsets[..., None]
        steps = (weight.to_dense().cpu().view(8, 4, 64) - exact).abs() / quantised.scales[..., None]
        assert steps.max() < 1.1 * most


def test_symmetric_checkpoints_are_kept_exactly_in_16_bits():
    scales = (torch.rand(6, 4) + 0.01).half().float()
    q = torch.randint(0, 16, (6, 128), dtype=torch.uint8)
    weight = new_quantised_weight(Grouped(4, 32), 6, 128, DEVICE, torch.float16)
    weight.fill_quantised(0, QuantisedRows(q, scales, -8 * scales))
    exact = (q.view(6, 4, 32).float() - 8) * scales[..., None]
    assert torch.equal(weight.to_dense().cpu(), exact.flatten(1))


def test_words_hold_columns_of_one_group_a_group_apart():
    """The picture in `grouped_words`."""
    q = torch.arange(32, dtype=torch.uint8)[None] % 16
    words = pack(q, 4, 32)
    assert words.shape == (1, 4)
    assert [(int(words[0, 1]) >> (4 * place)) & 15 for place in range(8)] == [1, 5, 9, 13, 1, 5, 9, 13]
    eight = pack(torch.arange(32, dtype=torch.uint8)[None], 8, 32)
    assert [(int(eight[0, 3]) >> (8 * place)) & 255 for place in range(4)] == [3, 11, 19, 27]


def test_equal_elements_and_zeros_survive():
    weight = new_quantised_weight(Grouped(4, 32), 3, 64, DEVICE, torch.bfloat16)
    rows = torch.zeros(3, 64)
    rows[1] = -0.375
    rows[2, :32] = 1e-38
    weight.fill(0, rows)
    assert torch.equal(weight.to_dense().cpu()[:2], rows[:2])
    assert weight.to_dense().isfinite().all()


@pytest.mark.parametrize("rule", [round_to_int8, round_to_fp8])
def test_activations_are_rounded_by_the_rule_of_all_kernels(rule):
    x = torch.randn(9, 300, generator=torch.Generator().manual_seed(2)) * torch.logspace(-6, 4, 9)[:, None]
    x[3] = 0
    x[4, :290] = 2.0**-9 * torch.arange(290) / 17  # many are subnormal in e4m3
    if DEVICE.type == "cpu":  # a division that is off by a bit would turn every tie
        values = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
        x[5] = 0
        x[5, :126], x[5, 150:276] = (values[1:] + values[:-1]) / 2, (values[1:] + values[:-1]) / -2
        x[5, 299] = values.max()
    expected_q, expected_scales = rule(x)
    q, scales = round_rows(x.to(DEVICE), expected_q.dtype)
    assert q.shape == (32, 300)
    assert torch.allclose(scales[:9].cpu(), expected_scales, rtol=1e-6, atol=0)
    assert not scales[9:].any() and not q[9:].view(torch.uint8).any()
    found, expected = q[:9].cpu().float(), expected_q.float()
    assert (found != expected).float().mean() < (0.002 if DEVICE.type == "cuda" else 1e-9)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_spoils_itself_only(poison):
    pair = make_pair(Int8(), 16, 64, torch.float32)
    x = torch.randn(20, 64)
    clean = pair.weight.product(x.to(DEVICE))
    x[4, 17] = poison
    found = pair.weight.product(x.to(DEVICE))
    others = torch.arange(20) != 4
    assert found[4].isnan().all()
    assert torch.equal(found[others], clean[others])


def test_a_dequantised_product_in_parts_is_the_whole_one(monkeypatch):
    pair = make_pair(Grouped(8, 32), 30, 64, torch.float32)
    x = torch.randn(5, 64, device=DEVICE)
    whole = dequantised_product(x, pair.weight.rows, 30)
    monkeypatch.setattr("rhizome_engine.kernels.triton.dequantised_product.MOST_ELEMENTS", 7 * 64)
    assert torch.allclose(dequantised_product(x, pair.weight.rows, 30), whole, rtol=1e-5, atol=1e-6)


def test_on_no_device_there_are_sizes_only():
    for weight_format in FORMATS:
        meta = new_quantised_weight(weight_format, 64, 384, torch.device("meta"), torch.bfloat16)
        real = new_quantised_weight(weight_format, 64, 384, DEVICE, torch.bfloat16)
        assert meta.num_bytes == real.num_bytes
        assert meta.workspace_bytes == real.workspace_bytes
    int4 = new_quantised_weight(Grouped(4, 128), 64, 384, DEVICE, torch.bfloat16)
    assert int4.num_bytes == 64 * (384 // 2 + 3 * 4 + 4)


def test_what_has_no_kernel_is_refused():
    with pytest.raises(ValueError, match="no triton kernel for int4-g20 with 100 inputs"):
        new_quantised_weight(Grouped(4, 20), 8, 100, DEVICE, torch.bfloat16)
    with pytest.raises(ValueError, match="float32 is not quantised"):
        new_quantised_weight(Dense(torch.float32), 8, 100, DEVICE, torch.float32)
