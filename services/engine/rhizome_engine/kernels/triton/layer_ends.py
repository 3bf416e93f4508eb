"""What products share at their beginning and at their end, inside a kernel."""

from __future__ import annotations

import triton
import triton.language as tl

from rhizome_engine.kernels.triton.arithmetic import activate


@triton.jit
def load_columns(row, columns, K: tl.constexpr, MASKED: tl.constexpr):
    """Load columns of rows that stay in the cache: x and gains. Beyond K they are 0."""
    if MASKED:
        return tl.load(row + columns, mask=columns < K, other=0.0)
    return tl.load(row + columns)


@triton.jit
def stream_columns(row, columns, K: tl.constexpr, MASKED: tl.constexpr):
    """Load columns of a matrix that is read once: it is the first to leave the cache. Beyond K they are 0."""
    if MASKED:
        return tl.load(row + columns, mask=columns < K, other=0.0, eviction_policy="evict_first")
    return tl.load(row + columns, eviction_policy="evict_first")


@triton.jit
def store_result(
    y,
    up,
    scales,
    bias,
    outputs,
    N,
    residual,
    out,
    place,
    present,
    multiplier,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    ADD: tl.constexpr,
):
    """Do to finished float32 sums what comes after a product in a layer, and store them.

    Args:
        y: sums; those of the gate where it is gated.
        up: sums of the other half; unused where it is not gated.
        scales: pointer to those of the matrix's rows, float32 [N], [2 N] where it is gated.
        bias: pointer, as `scales`.
        outputs: their numbers, in a shape that broadcasts to that of y.
        N: how many outputs a row of the result has.
        residual: pointer to what is added to.
        out: pointer to the result.
        place: of each sum in `residual` and `out`.
        present: which sums are wanted.
        multiplier: of what is added to the residual.
        SCALED: the matrix has scales.
        BIAS: there is one.
        GATED: y is multiplied, activated, by up.
        GELU: the activation; SiLU otherwise.
        ADD: to the residual.
    """
    wanted = outputs < N
    if SCALED:
        y *= tl.load(scales + outputs, mask=wanted, other=0.0)
    if BIAS:
        y += tl.load(bias + outputs, mask=wanted, other=0.0).to(tl.float32)
    if GATED:
        if SCALED:
            up *= tl.load(scales + N + outputs, mask=wanted, other=0.0)
        if BIAS:
            up += tl.load(bias + N + outputs, mask=wanted, other=0.0).to(tl.float32)
        y = activate(y, GELU) * up
    if ADD:
        y = tl.load(residual + place, mask=present, other=0.0).to(tl.float32) + multiplier * y
    tl.store(out + place, y.to(out.dtype.element_ty), mask=present)
