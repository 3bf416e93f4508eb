"""Each operation in each format, held to float64 of what the weight stands for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rhizome_engine.kernels.native.native_kernels import NativeKernels
from rhizome_engine.layers.linear import Linear
from rhizome_engine.layers.rms_norm import RMSNorm
from rhizome_engine.weights.format import Dense, Grouped, Int8, WeightFormat
from rhizome_engine.weights.rounding import quantise_rows_int8, round_to_int8
from rhizome_testing.random_layers import make_linear, make_norm

pytestmark = pytest.mark.timeout(600)  # the first one may compile, beside others on few cores

EXACT_FORMATS: list[WeightFormat] = [
    Dense(torch.float32),
    Dense(torch.bfloat16),
    Dense(torch.float16),
    Grouped(4, 32),
    Grouped(4, 128),
    Grouped(8, 64),
]
"""Those whose activations stay floating point."""
FORMATS: list[WeightFormat] = [*EXACT_FORMATS, Int8()]
IN_FEATURES = 384  # a multiple of all group sizes
INT8_ERROR = 0.02  # relative, of rounding activations


def reference(x: Tensor, linear: Linear, norm: RMSNorm | None = None) -> Tensor:
    x = x.double()
    if norm is not None:
        x = F.rms_norm(x, norm.gain.shape, norm.gain.double(), norm.eps)
    product = x @ linear.weight.to_dense().double().T
    return product if linear.bias is None else product + linear.bias.double()


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def tolerance(weight_format: WeightFormat) -> float:
    return INT8_ERROR if isinstance(weight_format, Int8) else 3e-6


@pytest.mark.parametrize("rows", [1, 2, 13, 40])
@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
class TestParity:
    def test_linear_normalises_and_adds_the_bias(
        self, kernels: NativeKernels, weight_format: WeightFormat, rows: int
    ) -> None:
        linear = make_linear(kernels, weight_format, 70, IN_FEATURES, bias=True)
        norm = make_norm(IN_FEATURES)
        x = torch.randn(rows, IN_FEATURES) * 3
        found = kernels.linear(x, linear, norm)
        assert found.shape == (rows, 70)
        assert relative_error(found, reference(x, linear, norm)) < tolerance(weight_format)

    @pytest.mark.parametrize("half", [96, 50], ids=["whole panels", "gate and up share a panel"])
    @pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
    def test_gated_linear_multiplies_the_activated_gate_with_up(
        self, kernels: NativeKernels, weight_format: WeightFormat, rows: int, activation: str, half: int
    ) -> None:
        linear = make_linear(kernels, weight_format, 2 * half, IN_FEATURES, bias=True)
        norm = make_norm(IN_FEATURES)
        x = torch.randn(rows, IN_FEATURES)
        gate, up = reference(x, linear, norm).chunk(2, dim=1)
        active = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
        found = kernels.gated_linear(x, linear, activation, norm)  # type: ignore[arg-type]
        assert found.shape == (rows, half)
        assert relative_error(found, active * up) < 2 * tolerance(weight_format)

    def test_add_linear_adds_a_multiple_in_place(
        self, kernels: NativeKernels, weight_format: WeightFormat, rows: int
    ) -> None:
        linear = make_linear(kernels, weight_format, 70, IN_FEATURES, bias=True)
        x, residual = torch.randn(rows, IN_FEATURES), torch.randn(rows, 70)
        expected = residual.double() + 0.25 * reference(x, linear)
        kernels.add_linear(residual, x, linear, 0.25)
        assert relative_error(residual, expected) < tolerance(weight_format)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_shapes_of_any_size(kernels: NativeKernels, data: st.DataObject) -> None:
    weight_format = data.draw(st.sampled_from(FORMATS))
    if isinstance(weight_format, Grouped):
        k = weight_format.group_size * data.draw(st.integers(1, 4))
    else:
        k = data.draw(st.integers(1, 300))
    n, rows = data.draw(st.integers(1, 100)), data.draw(st.integers(1, 30))
    linear = make_linear(kernels, weight_format, n, k)
    x = torch.randn(rows, k)
    found = kernels.linear(x, linear)
    if isinstance(weight_format, Int8):
        x = round_to_int8(x)[0].float() * round_to_int8(x)[1]
    expected = reference(x, linear)
    scale = x.double().norm(dim=1, keepdim=True) * linear.weight.to_dense().double().norm(dim=1) + 1e-9
    assert float(((found.double() - expected).abs() / scale).max()) < 1e-5


@pytest.mark.parametrize("k", [1, 3, 64, 577, 2500])
def test_int8_is_the_integer_product_bit_for_bit(kernels: NativeKernels, k: int) -> None:
    w, x = torch.randn(45, k), torch.randn(19, k) * 5
    linear = Linear(kernels, Int8(), k, {"part": 45})
    linear.weight.fill(0, w)
    weight = quantise_rows_int8(w)
    q, scales = round_to_int8(x)
    sums = q.long() @ weight.q.long().T
    expected = sums.float() * weight.scales.T * scales
    assert torch.equal(kernels.linear(x, linear), expected)


def test_int8_holds_the_largest_sums(kernels: NativeKernels) -> None:
    k = 65536
    linear = Linear(kernels, Int8(), k, {"part": 1})
    linear.weight.fill(0, torch.ones(1, k))
    assert kernels.linear(torch.ones(1, k), linear).item() == pytest.approx(k, rel=1e-6)
    assert kernels.linear(-torch.ones(1, k), linear).item() == pytest.approx(-k, rel=1e-6)
    with pytest.raises(ValueError, match="65540"):
        kernels.new_weight(Int8(), 1, 65540)


@pytest.mark.parametrize("k", [384, 2688], ids=["one block of inputs", "two"])
@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
def test_a_row_does_not_depend_on_the_others(
    kernels: NativeKernels, weight_format: WeightFormat, k: int
) -> None:
    linear, gated = (make_linear(kernels, weight_format, 128, k, bias=True) for _ in range(2))
    norm = make_norm(k)
    x = torch.randn(600, k)
    whole = kernels.linear(x, linear, norm).clone()
    whole_gated = kernels.gated_linear(x, gated, "silu", norm).clone()
    whole_sum = torch.ones(600, 128)
    kernels.add_linear(whole_sum, x, linear, 0.7)
    for first, rows in ((0, 1), (599, 1), (511, 2), (20, 7), (100, 33), (400, 200)):
        part = x[first : first + rows].clone()
        span = slice(first, first + rows)
        assert torch.equal(kernels.linear(part, linear, norm), whole[span])
        assert torch.equal(kernels.gated_linear(part, gated, "silu", norm), whole_gated[span])
        partial_sum = torch.ones(rows, 128)
        kernels.add_linear(partial_sum, part, linear, 0.7)
        assert torch.equal(partial_sum, whole_sum[span])


@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_spoils_itself_only(
    kernels: NativeKernels, weight_format: WeightFormat, poison: float
) -> None:
    linear = make_linear(kernels, weight_format, 33, IN_FEATURES)
    x = torch.randn(15, IN_FEATURES)
    clean = kernels.linear(x, linear).clone()
    x[4, 17] = poison
    found = kernels.linear(x, linear)
    assert not found[4].isfinite().any()
    others = torch.arange(15) != 4
    assert torch.equal(found[others], clean[others])


def test_rows_of_zeros_give_the_bias(kernels: NativeKernels) -> None:
    linear = make_linear(kernels, Int8(), 33, 64, bias=True)
    assert linear.bias is not None
    assert torch.equal(kernels.linear(torch.zeros(3, 64), linear), linear.bias.expand(3, -1))


def test_no_rows_are_no_work(kernels: NativeKernels) -> None:
    linear = make_linear(kernels, Int8(), 33, 64)
    assert kernels.linear(torch.empty(0, 64), linear).shape == (0, 33)


@pytest.mark.parametrize("size", [1, 17, 576])
def test_add_norm_adds_a_multiple_of_the_normalised_rows(kernels: NativeKernels, size: int) -> None:
    norm = make_norm(size)
    residual, x = torch.randn(9, size), torch.randn(9, size) * 4
    normalised = F.rms_norm(x.double(), (size,), norm.gain.double(), norm.eps)
    expected = residual.double() + 0.5 * normalised
    kernels.add_norm(residual, x, norm, 0.5)
    torch.testing.assert_close(residual.double(), expected, rtol=1e-5, atol=1e-6)


def test_activations_far_from_zero_do_not_overflow(kernels: NativeKernels) -> None:
    linear = Linear(kernels, Dense(torch.float32), 1, {"gate": 32, "up": 32})
    linear.weight.fill(0, torch.ones(64, 1))
    values = torch.tensor([-1e4, -200.0, -88.5, -20.0, -1e-3, 0.0, 1e-3, 20.0, 88.5, 200.0, 1e4])[:, None]
    for activation in ("silu", "gelu_tanh"):
        exact = values.double()
        active = F.silu(exact) if activation == "silu" else F.gelu(exact, approximate="tanh")
        found = kernels.gated_linear(values, linear, activation, None)  # type: ignore[arg-type]
        torch.testing.assert_close(found[:, :1].double(), active * exact, rtol=1e-5, atol=1e-7)


def test_a_result_is_kept_until_the_operation_is_called_again(kernels: NativeKernels) -> None:
    linear, other = make_linear(kernels, Int8(), 40, 64), make_linear(kernels, Int8(), 50, 40)
    x = torch.randn(2, 64)
    first = kernels.linear(x, linear)
    copy = first.clone()
    kernels.gated_linear(x, linear, "silu", None)
    kernels.add_linear(torch.zeros(2, 50), first, other)
    assert torch.equal(first, copy)
    assert kernels.linear(x, linear).data_ptr() == first.data_ptr()  # the same memory: nothing is allocated


def test_refuses_what_is_not_float32_rows(kernels: NativeKernels) -> None:
    linear = make_linear(kernels, Int8(), 40, 64)
    for x in (
        torch.randn(2, 63),
        torch.randn(64),
        torch.randn(2, 64).bfloat16(),
        torch.randn(2, 128)[:, ::2],
    ):
        with pytest.raises(AssertionError):
            kernels.linear(x, linear)
