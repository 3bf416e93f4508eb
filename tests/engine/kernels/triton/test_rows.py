"""Kernels over rows, each against plain PyTorch in float64: norms, gated activation, embedding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rhizome_engine.kernels.triton import norms
from rhizome_engine.kernels.triton.embedding import gather_rows
from rhizome_engine.kernels.triton.gating import gate
from rhizome_engine.kernels.triton.norms import add_rms_norm, rms_norm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# A last bit of the result; the interpreter cuts bfloat16 off where a GPU rounds to nearest.
LAST_BIT = {torch.float32: 1e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
dtypes = pytest.mark.parametrize("dtype", LAST_BIT, ids=str)
EPS = 1e-3


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def close(found: Tensor, expected: Tensor) -> None:
    bit = LAST_BIT[found.dtype]
    torch.testing.assert_close(found.double(), expected.double(), rtol=bit, atol=bit * 2**-4)


def normed(x: Tensor, gain: Tensor) -> Tensor:
    return F.rms_norm(x.double(), gain.shape, gain.double(), EPS)


@dtypes
@given(rows=st.integers(1, 4), size=st.integers(1, 300), scale=st.sampled_from([0.01, 1.0, 300.0]))
@settings(max_examples=6, phases=(Phase.explicit, Phase.generate))  # to shrink would take minutes
def test_rows_are_normalised(dtype: torch.dtype, rows: int, size: int, scale: float) -> None:
    x, gain = random(1, rows, size, dtype=dtype) * scale, random(2, size)
    close(rms_norm(x, gain, EPS), normed(x, gain))


@dtypes
@pytest.mark.parametrize("multiplier", [1.0, 0.22])
def test_normalised_rows_are_added_to_the_residual(dtype: torch.dtype, multiplier: float) -> None:
    x, gain, residual = random(1, 3, 70, dtype=dtype), random(2, 70), random(3, 3, 70, dtype=dtype)
    expected = residual.double() + multiplier * normed(x, gain)
    add_rms_norm(residual, x, gain, EPS, multiplier)
    close(residual, expected)


def test_rows_longer_than_a_block_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "LARGEST_BLOCK", 64)
    x, gain = random(1, 2, 200), random(2, 200)
    close(rms_norm(x, gain, EPS), normed(x, gain))


def test_rows_that_do_not_lie_together_are_normalised_all_the_same() -> None:
    wide, gain = random(1, 4, 96), random(2, 32)
    close(rms_norm(wide[::2, 32:64], gain, EPS), normed(wide[::2, 32:64], gain))
    with pytest.raises(ValueError, match=r"cannot add \[2, 32\] to \[2, 32\], strides \(192, 1\)"):
        add_rms_norm(wide[::2, 32:64], random(3, 2, 32), gain, EPS, 1.0)


@dtypes
@pytest.mark.parametrize("size", [1, 33, 1024, 1500])
def test_gate_and_up_lie_side_by_side(dtype: torch.dtype, size: int) -> None:
    both = random(1, 3, 2 * size, dtype=dtype) * 6
    first, second = both.double().chunk(2, dim=-1)
    close(gate(both, "silu"), F.silu(first) * second)
    close(gate(both, "gelu_tanh"), F.gelu(first, approximate="tanh") * second)


def test_a_gate_far_from_zero_is_open_or_shut() -> None:
    both = torch.tensor([[1e4, -1e4, 88.0, -88.0, 2.0, 2.0, 2.0, 2.0]], device=DEVICE)
    for activation in ("silu", "gelu_tanh"):
        assert gate(both, activation).tolist()[0] == pytest.approx([2e4, 0.0, 176.0, 0.0], abs=1e-30)


@dtypes
@pytest.mark.parametrize("multiplier", [1.0, 8.0, 0.3])
def test_rows_of_an_embedding_are_what_torch_gathers(dtype: torch.dtype, multiplier: float) -> None:
    table, ids = random(1, 11, 1100, dtype=dtype), torch.tensor([10, 0, 3, 3], device=DEVICE)
    found = gather_rows(table, ids, multiplier, dtype)
    if multiplier == 0.3:
        close(found, F.embedding(ids, table).double() * multiplier)
    else:
        assert torch.equal(found, F.embedding(ids, table) * multiplier)


def test_an_id_beyond_the_table_gives_zeros() -> None:
    table, ids = random(1, 4, 20), torch.tensor([4, -1, 2, 2**40], device=DEVICE)
    found = gather_rows(table, ids, 1.0, torch.float32)
    assert torch.equal(found[2], table[2])
    assert found[[0, 1, 3]].abs().sum() == 0


def test_no_rows_give_no_rows() -> None:
    nothing = torch.empty(0, 8, device=DEVICE)
    gain, ids = torch.ones(8, device=DEVICE), torch.empty(0, dtype=torch.int64, device=DEVICE)
    assert rms_norm(nothing, gain, EPS).shape == (0, 8)
    assert gate(nothing, "silu").shape == (0, 4)
    assert gather_rows(torch.ones(3, 8, device=DEVICE), ids, 1.0, torch.float32).shape == (0, 8)
    add_rms_norm(nothing, nothing, gain, EPS, 1.0)
