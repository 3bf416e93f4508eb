"""Rounding activations to 8 bits, row by row, by the rule of `weights.rounding`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_BLOCK = 8192
"""Elements of a row that a program holds at once; longer rows are read twice."""
_FEWEST_ROWS = 32
"""Fewer are filled up with zeros: vendor products in int8 refuse some numbers of rows below."""
_SMALLEST: tl.constexpr = tl.constexpr(1e-30)
_TO_INTEGER: tl.constexpr = tl.constexpr(12582912.0)
"""1.5 * 2 ** 23: added and taken away again it rounds to the nearest integer, ties to even."""


@triton.jit
def _e4m3_bits(v):
    """Return the bits of the e4m3 that is nearest to float32 values within +-448, ties to even, as int32.

    The exponents differ in their bias by 120. Below 2 ** -6 e4m3 are multiples of 2 ** -9.
    """
    bits = v.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - 960
    small = ((tl.abs(v) * 512.0 + _TO_INTEGER) - _TO_INTEGER).to(tl.int32)
    rounded = tl.where(magnitude >= 0x3C800000, normal, small)
    return rounded | ((bits >> 24) & 0x80)


@triton.jit(do_not_specialize=["count"])
def _round_rows(x, q, scales, count, stride, SIZE: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    known = row < count
    largest = tl.zeros([BLOCK], tl.float32)
    poison = tl.zeros([BLOCK], tl.float32)
    for start in range(0, SIZE, BLOCK):
        present = (start + columns < SIZE) & known
        v = tl.load(x + row * stride + start + columns, mask=present, other=0.0).to(tl.float32)
        finite = tl.abs(v) < float("inf")
        poison = tl.where(finite, poison, float("nan"))
        largest = tl.maximum(largest, tl.where(finite, tl.abs(v), 0.0))
    absmax = tl.max(largest, axis=0)
    factor = tl.where(absmax >= _SMALLEST, LARGEST / tl.maximum(absmax, _SMALLEST), 0.0)
    tl.store(scales + row, absmax / LARGEST + tl.sum(poison, axis=0))
    for start in range(0, SIZE, BLOCK):
        inside = start + columns < SIZE
        v = tl.load(x + row * stride + start + columns, mask=inside & known, other=0.0).to(tl.float32)
        v = tl.where(tl.abs(v) < float("inf"), v * factor, 0.0)
        v = tl.minimum(tl.maximum(v, -LARGEST), LARGEST)
        if LARGEST == 127.0:
            rounded = ((v + _TO_INTEGER) - _TO_INTEGER).to(tl.int8)
        else:
            rounded = _e4m3_bits(v).to(tl.uint8)
        tl.store(q + row * SIZE + start + columns, rounded, mask=inside)


def round_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round rows of activations to int8 or e4m3.

    Args:
        x: [n, size], floating point, elements of a row side by side.
        dtype: int8 or float8_e4m3fn.

    Returns:
        [max(n, 32), size] of `dtype`, zeros below the n rows, and their units, [max(n, 32), 1] float32: NaN
        for a row with NaN or infinity
    """
    count, size = x.shape
    if x.stride(1) != 1:
        x = x.contiguous()
    rows = max(count, _FEWEST_ROWS)
    q = torch.empty(rows, size, dtype=dtype, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    block = min(triton.next_power_of_2(size), LARGEST_BLOCK)
    is_int8 = dtype == torch.int8
    _round_rows[(rows,)](
        x,
        q if is_int8 else q.view(torch.uint8),
        scales,
        count,
        x.stride(0),
        SIZE=size,
        BLOCK=block,
        LARGEST=127.0 if is_int8 else 448.0,
        num_warps=max(1, min(block // 512, 8)),
    )
    return q, scales
