"""Rows of an embedding, times a number."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _gather(table, row_ids, out, num_rows, multiplier, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(row_ids + place)
    known = (row >= 0) & (row < num_rows)
    elements = tl.load(table + row * SIZE + columns, mask=(columns < SIZE) & known, other=0.0)
    scaled = elements.to(tl.float32) * multiplier
    tl.store(out + place * SIZE + columns, scaled.to(out.dtype.element_ty), mask=columns < SIZE)


def gather_rows(table: Tensor, row_ids: Tensor, multiplier: float, dtype: torch.dtype) -> Tensor:
    """Return rows of `table` [num_rows, size] times a number, [n, size] of `dtype`, newly allocated.

    A row id that the table lacks gives zeros: padding of a recorded step may hold anything, and to look
    would be to wait for the device.

    Args:
        table: contiguous.
        row_ids: [n] int64.
        multiplier: for all elements.
        dtype: of the result.
    """
    count, size = len(row_ids), table.shape[1]
    out = torch.empty(count, size, dtype=dtype, device=table.device)
    if count:
        grid = (count, triton.cdiv(size, BLOCK))
        _gather[grid](
            table, row_ids.contiguous(), out, len(table), multiplier, SIZE=size, BLOCK=BLOCK, num_warps=4
        )
    return out
