"""Rounding rows to integers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rhizome_engine.weights.base import QuantisedRows
from rhizome_engine.weights.rounding import (
    quantise_rows_fp8,
    quantise_rows_grouped,
    quantise_rows_int8,
    round_to_fp8,
    round_to_int8,
)


def dense(rows: QuantisedRows) -> torch.Tensor:
    groups = rows.scales.shape[1]
    grouped = rows.q.float().view(len(rows.q), groups, -1) * rows.scales[..., None]
    if rows.offsets is not None:
        grouped = grouped + rows.offsets[..., None]
    return grouped.flatten(1)


def test_int8_is_within_half_a_step_and_uses_the_whole_range() -> None:
    rows = torch.randn(300, 1000) * torch.logspace(-20, 20, 300)[:, None]
    found = quantise_rows_int8(rows)
    assert found.q.dtype == torch.int8
    assert found.q.abs().amax(dim=1).eq(127).all()
    assert ((dense(found) - rows).abs() <= found.scales * 0.5001).all()


def test_int8_rows_of_zeros_stay_zeros() -> None:
    rows = torch.zeros(3, 8)
    rows[1, 2] = 1e-38  # 127 / 1e-38 is no float32
    found = quantise_rows_int8(rows)
    assert not found.q.any()
    assert found.scales.isfinite().all()


def test_int8_takes_any_floating_type() -> None:
    rows = torch.randn(5, 64).bfloat16()
    assert torch.equal(quantise_rows_int8(rows).q, quantise_rows_int8(rows.float()).q)


@pytest.mark.parametrize("rule", [round_to_int8, round_to_fp8])
def test_activations_that_are_not_finite_get_the_step_nan(
    rule: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
) -> None:
    rows = torch.ones(3, 4)
    rows[1, 0], rows[2, 0] = float("nan"), float("inf")
    q, scales = rule(rows)
    assert scales.isnan().flatten().tolist() == [False, True, True]
    assert q.float().isfinite().all()


def test_e4m3_is_within_a_sixteenth_and_uses_the_whole_range() -> None:
    """Three bits of mantissa are off by a sixteenth at most; below 2 ** -6, by half of 2 ** -9."""
    rows = torch.randn(300, 1000) * torch.logspace(-20, 20, 300)[:, None]
    found = quantise_rows_fp8(rows)
    assert found.q.dtype == torch.float8_e4m3fn
    assert found.q.float().abs().amax(dim=1).eq(448).all()
    error = (dense(found) - rows).abs()
    assert (error <= torch.maximum(rows.abs() / 16, found.scales * 2**-10) * 1.0001).all()


def test_e4m3_rounds_to_the_nearest_ties_to_even() -> None:
    """Against all 253 finite values, by brute force."""
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    values = every[every.isfinite()].sort().values.unique()
    ties = (values[1:] + values[:-1]) / 2
    rows = torch.cat((values, ties, torch.randn(4000) * 100)).clamp(-448, 448)[None]
    q, scales = round_to_fp8(rows)
    assert scales.item() == 1
    distance = (values[None, :] - rows[0][:, None]).abs()
    assert torch.equal((q[0].float() - rows[0]).abs(), distance.amin(dim=1))
    mantissas = q[0, len(values) : len(values) + len(ties)].view(torch.uint8) & 1
    assert not mantissas.any()


def test_e4m3_rows_of_zeros_stay_zeros() -> None:
    rows = torch.zeros(3, 8)
    rows[1, 2] = 1e-38
    found = quantise_rows_fp8(rows)
    assert not found.q.float().any()
    assert found.scales.isfinite().all()


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 128), (8, 64), (4, 1024)])
def test_groups_are_within_half_a_step_of_their_range(bits: int, group_size: int) -> None:
    rows = torch.randn(40, 1024) + torch.randn(40, 1) * 3
    found = quantise_rows_grouped(rows, bits, group_size)
    assert found.q.dtype == torch.uint8
    assert found.q.max() == (1 << bits) - 1
    assert found.scales.shape == (40, 1024 // group_size)
    grouped = rows.view(40, -1, group_size)
    step = (grouped.amax(dim=2) - grouped.amin(dim=2)) / ((1 << bits) - 1)
    squared = (dense(found) - rows).view_as(grouped).square().sum(dim=2)
    assert (squared <= group_size * step.square() / 4).all()


def test_four_bits_clip_where_that_lowers_the_squared_error() -> None:
    rows = torch.randn(200, 1024, generator=torch.Generator().manual_seed(0))
    whole_range = QuantisedRows(*_min_max(rows, 128))
    clipped = quantise_rows_grouped(rows, 4, 128)
    before = (dense(whole_range) - rows).view(-1, 128).square().sum(dim=1)
    after = (dense(clipped) - rows).view(-1, 128).square().sum(dim=1)
    assert (after <= before * 1.0001).all()  # no group got worse
    assert after.sum() < 0.97 * before.sum()


def test_equal_elements_are_kept_exactly() -> None:
    rows = torch.full((2, 64), -0.37)
    assert torch.equal(dense(quantise_rows_grouped(rows, 4, 32)), rows)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    rows = torch.randn(6, 64)
    rows[3, 40] = value
    with pytest.raises(ValueError, match=r"^not finite$"):
        quantise_rows_int8(rows)
    with pytest.raises(ValueError, match=r"^not finite$"):
        quantise_rows_fp8(rows)
    with pytest.raises(ValueError, match=r"^not finite$"):
        quantise_rows_grouped(rows, 4, 32)


def _min_max(rows: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grouped = rows.view(len(rows), -1, group_size)
    low = grouped.amin(dim=2, keepdim=True)
    scale = (grouped.amax(dim=2, keepdim=True) - low) / 15
    q = ((grouped - low) / scale).round().to(torch.uint8)
    return q.flatten(1), scale[..., 0], low[..., 0]
