"""Several rows of x times a matrix of grouped integers in tensor cores: `tile_product` for words of integers.

Elements are dequantised in registers, in float32, and rounded to the type of x: what the reference multiplies
as well. One word of a tile gives a column to each of as many products as it has places. Sums are float32, and
a program owns its outputs alone: the same bits in every run, for any number of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from rhizome_engine.kernels.triton.configurations import Configuration
from rhizome_engine.kernels.triton.grouped_words import ONE, GroupedParts, fraction
from rhizome_engine.kernels.triton.layer_ends import store_result, stream_columns
from rhizome_engine.kernels.triton.runtime import interpreted
from rhizome_engine.kernels.triton.weight import SMALL_BATCH

if TYPE_CHECKING:
    from rhizome_engine.checkpoint.model_config import Activation

MOST_ROWS = 64
"""Rows of x, in 16 bits, that a program can hold; beyond, dequantising the matrix first costs less."""
_NORM_BLOCK = 256
_WIDEN = interpreted()
"""The interpreter would multiply the bits of bfloat16 as integers."""


@triton.jit
def _norm_factor(x, tokens, n, eps, K: tl.constexpr, BLOCK: tl.constexpr):
    """Return 1 / root mean square of each row of x."""
    squares = tl.zeros([tokens.shape[0], BLOCK], tl.float32)
    for start in range(0, K, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = (tokens < n)[:, None] & (columns < K)[None, :]
        part = tl.load(x + tokens[:, None] * K + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        squares += part * part
    return tl.rsqrt(tl.sum(squares, axis=1) / K + eps)


@triton.jit
def _dequantised(tile, one, scale, offset, PLACE: tl.constexpr, BITS: tl.constexpr):
    """Return the elements at a place of words, float32, without the factors of their rows."""
    return fraction(tile, one, PLACE, BITS) * scale + offset


@triton.jit
def _multiply(a, b, sums, WIDEN: tl.constexpr):
    if WIDEN:
        return tl.dot(a.to(tl.float32), b, sums, input_precision="ieee")
    return tl.dot(a, b.to(a.dtype), sums, input_precision="ieee")


@triton.jit
def _affine(scales, offsets, at, inside, BITS: tl.constexpr):
    """Load scales and offsets as those of fractions 1 + q / 2^BITS; see `grouped_words`."""
    STEPS: tl.constexpr = 1 << BITS
    scale = tl.load(scales + at, mask=inside, other=0.0).to(tl.float32) * STEPS
    offset = tl.load(offsets + at, mask=inside, other=0.0).to(tl.float32) - 1.5 * scale
    return scale, offset


@triton.jit(do_not_specialize=["n", "N", "one"])
def _grouped_tile_product(
    x,
    words,
    scales,
    offsets,
    factors,
    gain,
    bias,
    residual,
    out,
    n,
    N,
    one,
    eps,
    multiplier,
    K: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    NORM_BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    ADD: tl.constexpr,
    WIDEN: tl.constexpr,
):
    PLACES: tl.constexpr = 32 // BITS
    W: tl.constexpr = GROUP // PLACES
    WORDS: tl.constexpr = K // PLACES
    GROUPS: tl.constexpr = K // GROUP
    MASKED: tl.constexpr = WORDS % BLOCK_W != 0
    tokens = tl.arange(0, ROWS)
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    read = tl.minimum(outputs, N - 1).to(tl.int64)[None, :]  # the last program reads a row again
    other = N.to(tl.int64)
    sums = tl.zeros([ROWS, BLOCK_N], tl.float32)
    up_sums = tl.zeros([ROWS, BLOCK_N], tl.float32)
    norm_factor = tl.zeros([ROWS], tl.float32)
    if NORM:
        norm_factor = _norm_factor(x, tokens, n, eps, K, NORM_BLOCK)
    for start in tl.range(0, WORDS, BLOCK_W, num_stages=STAGES):
        word = start + tl.arange(0, BLOCK_W)
        there = word < WORDS
        tile = stream_columns(words + read * WORDS, word[:, None], WORDS, MASKED)
        group = (word // W)[:, None]
        scale, offset = _affine(scales, offsets, read * GROUPS + group, there[:, None], BITS)
        if GATED:
            up_tile = stream_columns(words + (other + read) * WORDS, word[:, None], WORDS, MASKED)
            at = (other + read) * GROUPS + group
            up_scale, up_offset = _affine(scales, offsets, at, there[:, None], BITS)
        first = (word // W) * GROUP + word % W
        inside = (tokens < n)[:, None] & there[None, :]
        for i in tl.static_range(PLACES):
            a = tl.load(x + tokens[:, None] * K + (first + i * W)[None, :], mask=inside, other=0.0)
            if NORM:
                gains = tl.load(gain + first + i * W, mask=there, other=0.0)
                a = (a.to(tl.float32) * norm_factor[:, None] * gains[None, :]).to(x.dtype.element_ty)
            sums = _multiply(a, _dequantised(tile, one, scale, offset, i, BITS), sums, WIDEN)
            if GATED:
                up = _dequantised(up_tile, one, up_scale, up_offset, i, BITS)
                up_sums = _multiply(a, up, up_sums, WIDEN)
    numbers = outputs[None, :]
    store_result(
        sums,
        up_sums,
        factors,
        bias,
        numbers,
        N,
        residual,
        out,
        tokens[:, None] * N + numbers,
        (tokens < n)[:, None] & (numbers < N),
        multiplier,
        True,
        BIAS,
        GATED,
        GELU,
        ADD,
    )


def grouped_tile_product(
    x: Tensor,
    parts: GroupedParts,
    gain: Tensor | None,
    eps: float,
    bias: Tensor | None,
    activation: Activation | None,
    residual: Tensor | None,
    multiplier: float,
    how: Configuration,
) -> Tensor:
    """See `TritonWeight.small_product`; for 1 to `MOST_ROWS` rows of x.

    Args:
        x: [n, in_features] contiguous.
        parts: of the matrix.
        gain: of the norm, or None.
        eps: of the norm.
        bias: [out_features] or None.
        activation: of the gate, or None.
        residual: [n, out_features] contiguous, or None.
        multiplier: of what is added to the residual.
        how: the matrix is cut, in words; it is not split along the row.
    """
    n, inputs = x.shape
    gated = activation is not None
    outputs = len(parts.words) // (1 + gated)
    out = residual
    if out is None:
        out = torch.empty(n, outputs, dtype=x.dtype, device=x.device)
    stages = how.num_stages if n <= SMALL_BATCH else min(how.num_stages, 2)  # shared memory holds no more
    _grouped_tile_product[(triton.cdiv(outputs, how.block_n),)](
        x,
        *parts.tensors,
        gain,
        bias,
        residual,
        out,
        n,
        outputs,
        ONE,
        eps,
        multiplier,
        K=inputs,
        BITS=parts.bits,
        GROUP=parts.group_size,
        ROWS=16 if n <= SMALL_BATCH else MOST_ROWS,  # few variants: each is compiled while serving
        BLOCK_N=how.block_n,
        BLOCK_W=how.block_k,
        NORM_BLOCK=_NORM_BLOCK,
        STAGES=stages,
        NORM=gain is not None,
        BIAS=bias is not None,
        GATED=gated,
        GELU=activation == "gelu_tanh",
        ADD=residual is not None,
        WIDEN=_WIDEN,
        num_warps=how.num_warps,
        num_stages=stages,
    )
    return out
