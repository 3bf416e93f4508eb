"""RMS norms of many rows: alone, and added to the residual stream. One program normalises one row."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, empty_like

LARGEST_BLOCK = 8192
"""Elements of a row that a program holds at once; longer rows are read twice."""


@triton.jit
def _norm(
    x, gain, residual, out, eps, multiplier, SIZE: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * SIZE
    columns = tl.arange(0, BLOCK)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, SIZE, BLOCK):
        present = start + columns < SIZE
        part = tl.load(x + row + start + columns, mask=present, other=0.0).to(tl.float32)
        squares += part * part
    scale = tl.rsqrt(tl.sum(squares, axis=0) / SIZE + eps)
    for start in range(0, SIZE, BLOCK):
        present = start + columns < SIZE
        part = tl.load(x + row + start + columns, mask=present, other=0.0).to(tl.float32)
        part = part * scale * tl.load(gain + start + columns, mask=present, other=0.0)
        if ADD:
            before = tl.load(residual + row + start + columns, mask=present, other=0.0).to(tl.float32)
            part = before + multiplier * part
        tl.store(out + row + start + columns, part.to(out.dtype.element_ty), mask=present)


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Return x [n, size] over its root mean square, times `gain` [size] float32; newly allocated."""
    x = x.contiguous()
    out = empty_like(x)
    if len(x):
        _launch(x, gain, None, out, eps, 1.0)
    return out


def add_rms_norm(residual: Tensor, x: Tensor, gain: Tensor, eps: float, multiplier: float) -> None:
    """Add `multiplier * rms_norm(x)` to `residual`, both [n, size], in place.

    Raises:
        ValueError: the two differ in shape, or the residual's rows do not lie one after the other.
    """
    if residual.shape != x.shape or not residual.is_contiguous():
        raise ValueError(f"cannot add {list(x.shape)} to {list(residual.shape)}, strides {residual.stride()}")
    if len(x):
        _launch(x.contiguous(), gain, residual, residual, eps, multiplier)


def _launch(
    x: Tensor, gain: Tensor, residual: Tensor | None, out: Tensor, eps: float, multiplier: float
) -> None:
    size = x.shape[1]
    block = min(triton.next_power_of_2(size), LARGEST_BLOCK)
    _norm[(len(x),)](
        x,
        gain,
        residual,
        out,
        eps,
        multiplier,
        SIZE=size,
        BLOCK=block,
        ADD=residual is not None,
        num_warps=max(1, min(block // 512, 8)),
    )
