"""Matrices of one byte per element and one scale per row: lookups, and the scales of integer sums."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _gather(table, scales, row_ids, out, num_rows, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(row_ids + place)
    known = (row >= 0) & (row < num_rows)
    present = (columns < SIZE) & known
    elements = tl.load(table + row * SIZE + columns, mask=present, other=0.0).to(tl.float32)
    scale = tl.load(scales + row, mask=known, other=0.0)
    tl.store(out + place * SIZE + columns, (elements * scale).to(out.dtype.element_ty), mask=columns < SIZE)


@triton.jit
def _scale_sums(sums, row_scales, column_scales, out, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    present = columns < size
    found = tl.load(sums + row * size + columns, mask=present, other=0).to(tl.float32)
    found = found * tl.load(row_scales + row) * tl.load(column_scales + columns, mask=present, other=0.0)
    tl.store(out + row * size + columns, found.to(out.dtype.element_ty), mask=present)


def gather_byte_rows(table: Tensor, scales: Tensor, row_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Return rows of `table` times their scales, [n, size] of `dtype`, newly allocated.

    A row id that the table lacks gives zeros, as in `embedding.gather_rows`.

    Args:
        table: [num_rows, size] int8 or float8_e4m3fn, contiguous.
        scales: [num_rows] float32.
        row_ids: [n] int64.
        dtype: of the result.
    """
    count, size = len(row_ids), table.shape[1]
    out = torch.empty(count, size, dtype=dtype, device=table.device)
    if count:
        grid = (count, triton.cdiv(size, BLOCK))
        ids = row_ids.to(table.device).contiguous()
        _gather[grid](table, scales, ids, out, len(table), SIZE=size, BLOCK=BLOCK, num_warps=4)
    return out


def scale_sums(
    sums: Tensor, row_scales: Tensor, column_scales: Tensor, count: int, dtype: torch.dtype
) -> Tensor:
    """Return integer sums as what they stand for, [count, size] of `dtype`.

    Args:
        sums: [rows, size] int32, contiguous, of which the first `count` rows are wanted.
        row_scales: [rows, 1] float32.
        column_scales: [size] float32.
        count: rows of the result.
        dtype: of the result.
    """
    size = sums.shape[1]
    out = torch.empty(count, size, dtype=dtype, device=sums.device)
    grid = (count, triton.cdiv(size, BLOCK))
    _scale_sums[grid](sums, row_scales, column_scales, out, size, BLOCK=BLOCK, num_warps=4)
    return out
