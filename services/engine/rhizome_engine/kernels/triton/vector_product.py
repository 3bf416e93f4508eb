"""One row of x times a matrix, with all that stands around it in a layer: bound by reading the matrix once.

Each program owns a few outputs. It reads their rows of the matrix in 16-byte pieces that are not kept in the
cache, multiplies in float32, and adds in an order that depends on the configuration alone: the same bits in
every run. The norm's factor is the same for a whole row of x, so it multiplies the finished sums and nothing
waits for it; each program computes it again, from a row that the cache holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from rhizome_engine.kernels.triton.configurations import Configuration
from rhizome_engine.kernels.triton.layer_ends import load_columns, store_result, stream_columns

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # an older Triton: configurations with dependent launches are refused
    gdc_launch_dependents = gdc_wait = None

if TYPE_CHECKING:
    from rhizome_engine.checkpoint.model_config import Activation

HAS_DEPENDENT_LAUNCH = gdc_wait is not None


@triton.jit
def _partial_sums(tile, v, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, RUN: tl.constexpr):
    """Multiply and add up runs of neighbours, which one thread holds: [BLOCK_N, BLOCK_K / RUN]."""
    products = tile.to(tl.float32) * v[None, :]
    return tl.sum(tl.reshape(products, (BLOCK_N, BLOCK_K // RUN, RUN)), axis=2)


@triton.jit(do_not_specialize=["N"])
def _vector_product(
    x,
    weight,
    scales,
    gain,
    bias,
    residual,
    out,
    N,
    eps,
    multiplier,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RUN: tl.constexpr,
    SCALED: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    ADD: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    MASKED: tl.constexpr = K % BLOCK_K != 0
    if DEPENDENT:
        gdc_launch_dependents()
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    read = tl.minimum(rows, N - 1).to(tl.int64)  # the last program reads a row again rather than beyond
    matrix = weight + read[:, None] * K
    sums = tl.zeros([BLOCK_N, BLOCK_K // RUN], tl.float32)
    up_sums = tl.zeros([BLOCK_N, BLOCK_K // RUN], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, K, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        tile = stream_columns(matrix, columns[None, :], K, MASKED)
        if GATED:
            up_tile = stream_columns(matrix + N.to(tl.int64) * K, columns[None, :], K, MASKED)
        if DEPENDENT:
            gdc_wait()  # x is what the kernel ahead of this one computes
        v = load_columns(x, columns, K, MASKED).to(tl.float32)
        if NORM:
            squares += v * v
            v = v * load_columns(gain, columns, K, MASKED)
        sums += _partial_sums(tile, v, BLOCK_N, BLOCK_K, RUN)
        if GATED:
            up_sums += _partial_sums(up_tile, v, BLOCK_N, BLOCK_K, RUN)
    y = tl.sum(sums, axis=1)
    up = tl.sum(up_sums, axis=1)
    if NORM:
        factor = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
        y = y * factor
        up = up * factor
    present = rows < N
    store_result(
        y, up, scales, bias, rows, N, residual, out, rows, present, multiplier, SCALED, BIAS, GATED, GELU, ADD
    )


def vector_product(
    x: Tensor,
    weight: Tensor,
    gain: Tensor | None,
    eps: float,
    bias: Tensor | None,
    activation: Activation | None,
    residual: Tensor | None,
    multiplier: float,
    how: Configuration,
    scales: Tensor | None = None,
) -> Tensor:
    """See `TritonWeight.small_product`, for one row of x.

    Args:
        x: [1, in_features] contiguous.
        weight: [out_features, in_features] contiguous, in the dtype of x; with scales, int8 or e4m3.
        gain: of the norm, or None.
        eps: of the norm.
        bias: [out_features] or None.
        activation: of the gate, or None.
        residual: [1, out_features] contiguous, or None.
        multiplier: of what is added to the residual.
        how: the matrix is cut.
        scales: [out_features] float32, of the matrix's rows; None for ones.

    Raises:
        ValueError: a dependent launch is asked for and Triton has none.
    """
    gated = activation is not None
    outputs = weight.shape[0] // (1 + gated)
    out = residual
    if out is None:
        out = torch.empty(1, outputs, dtype=x.dtype, device=x.device)
    if how.dependent_launch and not HAS_DEPENDENT_LAUNCH:
        raise ValueError("this version of Triton has no dependent launches")
    options = {"launch_pdl": True} if how.dependent_launch else {}
    _vector_product[(triton.cdiv(outputs, how.block_n),)](
        x,
        weight,
        scales,
        gain,
        bias,
        residual,
        out,
        outputs,
        eps,
        multiplier,
        K=weight.shape[1],
        BLOCK_N=how.block_n,
        BLOCK_K=how.block_k,
        RUN=min(16 // weight.itemsize, how.block_k),
        SCALED=scales is not None,
        NORM=gain is not None,
        BIAS=bias is not None,
        GATED=gated,
        GELU=activation == "gelu_tanh",
        ADD=residual is not None,
        DEPENDENT=how.dependent_launch,
        num_warps=how.num_warps,
        **options,
    )
    return out
