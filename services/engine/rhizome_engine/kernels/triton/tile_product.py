"""Two to sixteen rows of x times a matrix in tensor cores, with all that stands around it in a layer.

Sums are float32. Under a norm x is multiplied by its gain, rounded, and multiplied; the norm's factor, one
for each row, multiplies the finished sums. float16 could overflow so, and is normalised first. Where the
matrix has few rows, several programs share each, write what they summed, and a second kernel adds the parts
in their order: the same bits in every run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from rhizome_engine.kernels.triton.configurations import Configuration
from rhizome_engine.kernels.triton.layer_ends import load_columns, store_result, stream_columns
from rhizome_engine.kernels.triton.runtime import interpreted

if TYPE_CHECKING:
    from rhizome_engine.checkpoint.model_config import Activation

ROWS = 16
"""What x is padded to: a tile of the tensor cores."""
_FINISH_BLOCK = 512
_NO_NORM, _FACTOR_LAST, _FACTOR_FIRST = 0, 1, 2
_WIDEN = interpreted()
"""The interpreter would multiply the bits of bfloat16 as integers."""


@triton.jit
def _row_factor(x, tokens, n, eps, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return 1 / root mean square of each row of x, from all its columns."""
    squares = tl.zeros([tokens.shape[0]], tl.float32)
    for start in range(0, K, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        inside = (tokens < n)[:, None] & (columns < K)[None, :]
        part = tl.load(x + tokens[:, None] * K + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        squares += tl.sum(part * part, axis=1)
    return tl.rsqrt(squares / K + eps)


@triton.jit
def _multiply(a, tile, sums, WIDEN: tl.constexpr):
    if WIDEN:
        return tl.dot(a.to(tl.float32), tl.trans(tile.to(tl.float32)), sums, input_precision="ieee")
    # Integers and e4m3 become the type of x, which holds each of them exactly.
    return tl.dot(a, tl.trans(tile.to(a.dtype)), sums, input_precision="ieee")


@triton.jit(do_not_specialize=["n", "N"])
def _tile_product(
    x,
    weight,
    scales,
    gain,
    bias,
    residual,
    out,
    parts,
    part_squares,
    n,
    N,
    eps,
    multiplier,
    K: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    NORM: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    ADD: tl.constexpr,
    SPLIT: tl.constexpr,
    MASKED: tl.constexpr,
    WIDEN: tl.constexpr,
):
    tokens = tl.arange(0, ROWS)
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(1)
    read = tl.minimum(outputs, N - 1).to(tl.int64)  # the last program reads a row again rather than beyond
    matrix = weight + read[:, None] * K
    sums = tl.zeros([ROWS, BLOCK_N], tl.float32)
    up_sums = tl.zeros([ROWS, BLOCK_N], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    factor = tl.zeros([ROWS], tl.float32)
    if NORM == 2:
        factor = _row_factor(x, tokens, n, eps, K, BLOCK_K)
    for start in tl.range(0, SPAN, BLOCK_K, num_stages=STAGES):
        columns = part * SPAN + start + tl.arange(0, BLOCK_K)
        tile = stream_columns(matrix, columns[None, :], K, MASKED)
        if GATED:
            up_tile = stream_columns(matrix + N.to(tl.int64) * K, columns[None, :], K, MASKED)
        inside = (tokens < n)[:, None]
        if MASKED:
            inside = inside & (columns < K)[None, :]
        a = tl.load(x + tokens[:, None] * K + columns[None, :], mask=inside, other=0.0)
        if NORM != 0:
            wide = a.to(tl.float32)
            gains = load_columns(gain, columns, K, MASKED)
            if NORM == 1:
                squares += tl.sum(wide * wide, axis=1)
                a = (wide * gains[None, :]).to(x.dtype.element_ty)
            else:
                a = (wide * factor[:, None] * gains[None, :]).to(x.dtype.element_ty)
        sums = _multiply(a, tile, sums, WIDEN)
        if GATED:
            up_sums = _multiply(a, up_tile, up_sums, WIDEN)
    present = (tokens < n)[:, None] & (outputs < N)[None, :]
    if SPLIT:
        WIDTH = N * (2 if GATED else 1)
        place = parts + (part * n + tokens)[:, None].to(tl.int64) * WIDTH + outputs[None, :]
        tl.store(place, sums, mask=present)
        if GATED:
            tl.store(place + N, up_sums, mask=present)
        if NORM == 1:
            tl.store(part_squares + part * n + tokens, squares, mask=(tokens < n) & (tl.program_id(0) == 0))
    else:
        if NORM == 1:
            factor = tl.rsqrt(squares / K + eps)
            sums = sums * factor[:, None]
            up_sums = up_sums * factor[:, None]
        numbers = outputs[None, :]
        place = tokens[:, None] * N + numbers
        store_result(
            sums,
            up_sums,
            scales,
            bias,
            numbers,
            N,
            residual,
            out,
            place,
            present,
            multiplier,
            SCALED,
            BIAS,
            GATED,
            GELU,
            ADD,
        )


@triton.jit(do_not_specialize=["n", "N"])
def _finish(
    scales,
    bias,
    residual,
    out,
    parts,
    part_squares,
    n,
    N,
    eps,
    multiplier,
    K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    ADD: tl.constexpr,
):
    """Add the parts of one row in their order, and do what the product left undone."""
    token = tl.program_id(1)
    outputs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    present = outputs < N
    WIDTH = N * (2 if GATED else 1)
    sums = tl.zeros([BLOCK], tl.float32)
    up_sums = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([1], tl.float32)
    for part in range(SPLIT_K):
        row = parts + (part * n + token).to(tl.int64) * WIDTH + outputs
        sums += tl.load(row, mask=present, other=0.0)
        if GATED:
            up_sums += tl.load(row + N, mask=present, other=0.0)
        if NORM == 1:
            squares += tl.load(part_squares + part * n + token)
    if NORM == 1:
        factor = tl.rsqrt(squares / K + eps)
        sums = sums * factor
        up_sums = up_sums * factor
    place = token * N + outputs
    store_result(
        sums,
        up_sums,
        scales,
        bias,
        outputs,
        N,
        residual,
        out,
        place,
        present,
        multiplier,
        SCALED,
        BIAS,
        GATED,
        GELU,
        ADD,
    )


def tile_product(
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
    """See `TritonWeight.small_product`; for any 1 to 16 rows of x.

    Args:
        x: [n, in_features] contiguous.
        weight: [out_features, in_features] contiguous, in the dtype of x; with scales, int8 or e4m3.
        gain: of the norm, or None.
        eps: of the norm.
        bias: [out_features] or None.
        activation: of the gate, or None.
        residual: [n, out_features] contiguous, or None.
        multiplier: of what is added to the residual.
        how: the matrix is cut.
        scales: [out_features] float32, of the matrix's rows; None for ones.
    """
    n, inputs = x.shape
    gated = activation is not None
    outputs = weight.shape[0] // (1 + gated)
    norm = _NO_NORM
    if gain is not None:
        norm = _FACTOR_FIRST if x.dtype == torch.float16 else _FACTOR_LAST
    out = residual
    if out is None:
        out = torch.empty(n, outputs, dtype=x.dtype, device=x.device)
    split = how.split_k > 1
    span = triton.cdiv(triton.cdiv(inputs, how.split_k), how.block_k) * how.block_k
    parts = part_squares = None
    if split:
        parts = torch.empty(how.split_k, n, weight.shape[0], dtype=torch.float32, device=x.device)
        part_squares = torch.empty(how.split_k, n, dtype=torch.float32, device=x.device)
    around = {
        "K": inputs,
        "NORM": norm,
        "SCALED": scales is not None,
        "BIAS": bias is not None,
        "GATED": gated,
        "GELU": activation == "gelu_tanh",
        "ADD": residual is not None,
    }
    _tile_product[(triton.cdiv(outputs, how.block_n), how.split_k)](
        x,
        weight,
        scales,
        gain,
        bias,
        residual,
        out,
        parts,
        part_squares,
        n,
        outputs,
        eps,
        multiplier,
        SPAN=span,
        ROWS=ROWS,
        BLOCK_N=how.block_n,
        BLOCK_K=how.block_k,
        STAGES=how.num_stages,
        SPLIT=split,
        MASKED=span * how.split_k != inputs,
        WIDEN=_WIDEN,
        num_warps=how.num_warps,
        num_stages=how.num_stages,
        **around,
    )
    if split:
        _finish[(triton.cdiv(outputs, _FINISH_BLOCK), n)](
            scales,
            bias,
            residual,
            out,
            parts,
            part_squares,
            n,
            outputs,
            eps,
            multiplier,
            SPLIT_K=how.split_k,
            BLOCK=_FINISH_BLOCK,
            num_warps=4,
            **around,
        )
    return out
