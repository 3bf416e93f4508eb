"""Products of bfloat16 matrices with activations rounded to bfloat16, on processors that multiply these."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rhizome_engine.kernels.native.library import Library
from rhizome_engine.kernels.native.native_kernels import NativeKernels
from rhizome_engine.layers.linear import Linear
from rhizome_engine.layers.rms_norm import RMSNorm
from rhizome_engine.weights.format import Dense, Int8
from rhizome_testing.random_layers import make_linear, make_norm

pytestmark = pytest.mark.timeout(600)  # the first one may compile, beside others on few cores

BFLOAT16 = Dense(torch.bfloat16)
ORDER_ERROR = 1e-6  # relative, of sums of the same products in another order
NORM_ERROR = 1e-4  # an element that lies between two numbers may go to the other one: 2^-8 of itself


@pytest.fixture
def rounding(bfloat16_library: Library) -> NativeKernels:
    torch.manual_seed(0)
    return NativeKernels(bfloat16_library, rounding=True)


def emulated(x: Tensor, linear: Linear, norm: RMSNorm | None = None) -> Tensor:
    """Round as the processor does, but sum in float64."""
    if norm is not None:
        x = F.rms_norm(x, norm.gain.shape, norm.gain, norm.eps)
    product = x.bfloat16().double() @ linear.weight.to_dense().double().T
    return product if linear.bias is None else product + linear.bias.double()


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("rows", [1, 2, 12, 13, 40])
@pytest.mark.parametrize("k", [384, 385], ids=["even", "odd"])
class TestParity:
    def test_linear_rounds_the_activations_and_nothing_else(
        self, rounding: NativeKernels, rows: int, k: int
    ) -> None:
        linear = make_linear(rounding, BFLOAT16, 70, k, bias=True)
        x = torch.randn(rows, k) * 3
        found = rounding.linear(x, linear)
        assert relative_error(found, emulated(x, linear)) < ORDER_ERROR

    def test_the_norm_is_rounded_once(self, rounding: NativeKernels, rows: int, k: int) -> None:
        linear, norm = make_linear(rounding, BFLOAT16, 70, k), make_norm(k)
        x = torch.randn(rows, k) * 3
        found = rounding.linear(x, linear, norm)
        assert relative_error(found, emulated(x, linear, norm)) < NORM_ERROR

    @pytest.mark.parametrize("half", [96, 50], ids=["whole panels", "gate and up share a panel"])
    def test_gated_linear_activates_in_float32(
        self, rounding: NativeKernels, rows: int, k: int, half: int
    ) -> None:
        linear = make_linear(rounding, BFLOAT16, 2 * half, k, bias=True)
        x = torch.randn(rows, k)
        gate, up = emulated(x, linear).chunk(2, dim=1)
        found = rounding.gated_linear(x, linear, "silu", None)
        assert relative_error(found, F.silu(gate) * up) < 2 * ORDER_ERROR

    def test_add_linear_adds_a_multiple_in_float32(self, rounding: NativeKernels, rows: int, k: int) -> None:
        linear = make_linear(rounding, BFLOAT16, 70, k, bias=True)
        x, residual = torch.randn(rows, k), torch.randn(rows, 70)
        expected = residual.double() + 0.25 * emulated(x, linear)
        rounding.add_linear(residual, x, linear, 0.25)
        assert relative_error(residual, expected) < ORDER_ERROR


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 100), k=st.integers(1, 300), rows=st.integers(1, 40))
def test_shapes_of_any_size(rounding: NativeKernels, n: int, k: int, rows: int) -> None:
    linear = make_linear(rounding, BFLOAT16, n, k)
    x = torch.randn(rows, k)
    found = rounding.linear(x, linear)
    scale = x.double().norm(dim=1, keepdim=True) * linear.weight.to_dense().double().norm(dim=1) + 1e-9
    assert float(((found.double() - emulated(x, linear)).abs() / scale).max()) < 1e-6


def test_ties_go_to_the_even_number(rounding: NativeKernels) -> None:
    linear = Linear(rounding, BFLOAT16, 1, {"part": 1})
    linear.weight.fill(0, torch.ones(1, 1))
    step = 2.0**-7  # between bfloat16 numbers from 1 to 2
    x = torch.tensor([1 + step / 2, 1 + 1.5 * step, 1 + 0.49 * step, 1 + 0.51 * step])[:, None]
    assert rounding.linear(x, linear).flatten().tolist() == [1, 1 + 2 * step, 1, 1 + step]


@pytest.mark.parametrize("k", [385, 4096, 5001], ids=["one block of inputs", "a whole block", "two blocks"])
def test_a_row_does_not_depend_on_the_others(rounding: NativeKernels, k: int) -> None:
    linear, gated = (make_linear(rounding, BFLOAT16, 128, k, bias=True) for _ in range(2))
    norm = make_norm(k)
    x = torch.randn(600, k)
    whole = rounding.linear(x, linear, norm).clone()
    whole_gated = rounding.gated_linear(x, gated, "silu", norm).clone()
    assert relative_error(whole, emulated(x, linear, norm)) < NORM_ERROR
    for first, rows in ((0, 1), (599, 1), (511, 2), (20, 7), (100, 33), (400, 200)):
        part = x[first : first + rows].clone()
        span = slice(first, first + rows)
        assert torch.equal(rounding.linear(part, linear, norm), whole[span])
        assert torch.equal(rounding.gated_linear(part, gated, "silu", norm), whole_gated[span])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("k", [64, 65], ids=["even", "odd"])
def test_a_row_that_is_not_finite_spoils_itself_only(rounding: NativeKernels, poison: float, k: int) -> None:
    linear = make_linear(rounding, BFLOAT16, 33, k)
    x = torch.randn(15, k)
    clean = rounding.linear(x, linear).clone()
    # Twice, as a row that was padded once may leave its elements to a later one.
    for _ in range(2):
        spoilt = x.clone()
        spoilt[4] = poison
        found = rounding.linear(spoilt, linear)
        others = torch.arange(15) != 4
        assert not found[4].isfinite().any()
        assert torch.equal(found[others], clean[others])


def test_pads_of_a_row_forget_what_was_there(rounding: NativeKernels) -> None:
    wide, odd = make_linear(rounding, BFLOAT16, 33, 64), make_linear(rounding, BFLOAT16, 33, 33)
    rounding.linear(torch.full((5, 64), float("nan")), wide)  # stays in the scratch memory of the threads
    assert rounding.linear(torch.randn(5, 33), odd).isfinite().all()


@pytest.mark.parametrize("k", [1, 31, 96])
def test_rows_come_back_as_they_were_rounded(rounding: NativeKernels, k: int) -> None:
    rows = torch.randn(77, k)
    weight = rounding.new_weight(BFLOAT16, 77, k)
    for start, end in ((40, 77), (0, 1), (1, 33), (33, 40)):  # in any order
        weight.fill(start, rows[start:end])
    assert torch.equal(weight.to_dense(), rows.bfloat16().float())
    ids = torch.tensor([76, 0, 31, 32, 5, 5])
    assert torch.equal(rounding.embed(weight, ids, 3.0), rows.bfloat16().float()[ids] * 3)


def test_other_formats_and_exact_matrices_are_computed_as_without_rounding(
    rounding: NativeKernels, bfloat16_library: Library
) -> None:
    exactly = NativeKernels(bfloat16_library)
    rows, x = torch.randn(40, 65), torch.randn(7, 65)
    for weight_format in (Dense(torch.bfloat16, exact=True), Dense(torch.float16), Int8()):
        results = []
        for kernels in (rounding, exactly):
            linear = Linear(kernels, weight_format, 65, {"part": 40})
            linear.weight.fill(0, rows)
            results.append(kernels.linear(x, linear))
        assert torch.equal(*results)
    # What is held equal above does differ where activations are rounded.
    one, other = make_linear(rounding, BFLOAT16, 40, 65), make_linear(exactly, BFLOAT16, 40, 65)
    other.weight.fill(0, one.weight.to_dense())
    assert not torch.equal(rounding.linear(x, one), exactly.linear(x, other))


def test_kernels_for_other_processors_refuse_to_round(library: Library) -> None:
    if library.has_bfloat16():
        assert NativeKernels(library, rounding=True).name == f"native-{library.variant}-rounding"
    else:
        with pytest.raises(ValueError, match=f"{library.variant} has no products in bfloat16"):
            NativeKernels(library, rounding=True)
