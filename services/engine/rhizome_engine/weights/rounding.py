"""Rounding of floating-point rows to few bits: the one rule that all kernels share."""

from __future__ import annotations

import torch
from torch import Tensor

from rhizome_engine.weights.base import QuantisedRows

INT8_MAX = 127
FP8_MAX = 448
"""The largest e4m3."""
SMALLEST = 1e-30
"""Rows without a larger element are taken for zeros: 448 divided by it must be finite."""
CLIPPINGS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Fractions of a group's range that are tried for few bits: giving up its ends makes the steps finer."""
BLOCK_ELEMENTS = 1 << 18  # of one pass: its temporaries stay in the cache


def quantise_rows_int8(rows: Tensor) -> QuantisedRows:
    """Round each row of a matrix to int8; see `round_to_int8`.

    Args:
        rows: [m, in_features], floating point.

    Raises:
        ValueError: an element is NaN or infinite.
    """
    q = torch.empty(rows.shape, dtype=torch.int8, device=rows.device)
    scales = torch.empty(rows.shape[0], 1, device=rows.device)
    for start, block in _blocks(rows):
        end = start + block.shape[0]
        q[start:end], scales[start:end] = round_to_int8(block)
    _check_finite(scales)
    return QuantisedRows(q, scales, None)


def round_to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round float32 rows [m, n] to integers [m, n] in steps of their largest absolute value / 127, [m, 1].

    Ties go to even. A row with NaN or infinity gets the step NaN, so that NaN is what it stands for.
    """
    absmax = rows.abs().amax(dim=1, keepdim=True)
    factor = torch.where(absmax >= SMALLEST, INT8_MAX / absmax.clamp_min(SMALLEST), 0)
    q = (rows * factor).round_().clamp_(-INT8_MAX, INT8_MAX)
    scales = torch.where(absmax.isfinite(), absmax / INT8_MAX, torch.nan)
    return q.nan_to_num_(0).to(torch.int8), scales


def quantise_rows_fp8(rows: Tensor) -> QuantisedRows:
    """Round each row of a matrix to e4m3; see `round_to_fp8`.

    Args:
        rows: [m, in_features], floating point.

    Raises:
        ValueError: an element is NaN or infinite.
    """
    q = torch.empty(rows.shape, dtype=torch.float8_e4m3fn, device=rows.device)
    scales = torch.empty(rows.shape[0], 1, device=rows.device)
    for start, block in _blocks(rows):
        end = start + block.shape[0]
        q[start:end], scales[start:end] = round_to_fp8(block)
    _check_finite(scales)
    return QuantisedRows(q, scales, None)


def round_to_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round float32 rows [m, n] to e4m3 [m, n] in units of their largest absolute value / 448, [m, 1].

    Ties go to even. A row with NaN or infinity gets the unit NaN, so that NaN is what it stands for.
    """
    absmax = rows.abs().amax(dim=1, keepdim=True)
    factor = torch.where(absmax >= SMALLEST, FP8_MAX / absmax.clamp_min(SMALLEST), 0)
    q = (rows * factor).nan_to_num_(0).clamp_(-FP8_MAX, FP8_MAX)
    scales = torch.where(absmax.isfinite(), absmax / FP8_MAX, torch.nan)
    return q.to(torch.float8_e4m3fn), scales


def quantise_rows_grouped(rows: Tensor, bits: int, group_size: int) -> QuantisedRows:
    """Round groups along each row to unsigned integers, an element being `scale * q + offset`.

    A group's range is its minimum to its maximum; with 4 bits or fewer also narrower ranges are tried, and
    the one with the least squared error is kept.

    Args:
        rows: [m, in_features], floating point; in_features is a multiple of group_size.
        bits: of an integer, at most 8.
        group_size: elements that share a scale and an offset.

    Raises:
        ValueError: an element is NaN or infinite.
    """
    m, in_features = rows.shape
    groups = in_features // group_size
    q = torch.empty(rows.shape, dtype=torch.uint8, device=rows.device)
    scales, offsets = torch.empty(2, m, groups, device=rows.device)
    for start, block in _blocks(rows):
        end = start + block.shape[0]
        grouped = block.reshape(-1, group_size)
        rounded, scale, offset = _round_groups(grouped, (1 << bits) - 1, CLIPPINGS if bits <= 4 else (1.0,))
        q[start:end] = rounded.reshape(block.shape)
        scales[start:end] = scale.reshape(-1, groups)
        offsets[start:end] = offset.reshape(-1, groups)
    return QuantisedRows(q, scales, offsets)


def _round_groups(
    groups: Tensor, largest: int, clippings: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Round each of [n, group_size] with the best of the clippings; returns integers, scales, offsets."""
    low, high = torch.aminmax(groups, dim=1, keepdim=True)
    _check_finite(high - low)
    best: tuple[Tensor, Tensor] | None = None
    least = low  # of no meaning before the first clipping
    for clipping in clippings:
        width = (high - low) * clipping
        scale = width / largest
        offset = low + (high - low - width) / 2
        if len(clippings) > 1:
            error = (_round(groups, scale, offset, largest).mul_(scale).add_(offset) - groups).square_()
            error = error.sum(dim=1, keepdim=True)
        else:
            error = torch.zeros_like(low)
        if best is None:
            best, least = (scale, offset), error
        else:
            better = error < least
            best = torch.where(better, scale, best[0]), torch.where(better, offset, best[1])
            least = torch.minimum(least, error)
    assert best is not None  # there is at least one clipping
    scale, offset = best
    return _round(groups, scale, offset, largest), scale, offset


def _round(groups: Tensor, scale: Tensor, offset: Tensor, largest: int) -> Tensor:
    # A group of equal elements has the scale 0: any integer stands for its offset.
    factor = torch.where(scale > 0, 1 / scale.clamp_min(torch.finfo(torch.float32).tiny), 0)
    return ((groups - offset) * factor).round_().clamp_(0, largest)


def _blocks(rows: Tensor) -> list[tuple[int, Tensor]]:
    size = max(1, BLOCK_ELEMENTS // rows.shape[1])
    if rows.device.type != "cpu":  # which would rather have few large passes than many small ones
        size = max(1, len(rows))
    return [(start, rows[start : start + size].float()) for start in range(0, rows.shape[0], size)]


def _check_finite(ranges: Tensor) -> None:
    if not torch.isfinite(ranges).all():
        raise ValueError("not finite")
