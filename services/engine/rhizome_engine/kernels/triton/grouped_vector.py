"""One row of x times a matrix of grouped integers: `vector_product` for words of integers.

At 4 bits the arithmetic costs as much time as the memory does, so it is counted: for each element half a
shift, a mask with the exponent of 1.0 put in, and one multiplication and addition with x. Two places share a
shift: the lower one then makes 1 + q / 256, and its sums count 16 times. What depends on the group happens
once per run of words: the run's sum gets the scale, and the run's sum of x the offset.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from rhizome_engine.kernels.triton.configurations import Configuration
from rhizome_engine.kernels.triton.grouped_words import ONE, GroupedParts, fraction
from rhizome_engine.kernels.triton.layer_ends import load_columns, store_result, stream_columns
from rhizome_engine.kernels.triton.vector_product import HAS_DEPENDENT_LAUNCH

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:  # an older Triton: configurations with dependent launches are refused
    gdc_launch_dependents = gdc_wait = None

if TYPE_CHECKING:
    from rhizome_engine.checkpoint.model_config import Activation


@triton.jit
def _lower_fraction(words, one, PLACE: tl.constexpr):
    """Return 1 + q / 256, float32, of the 4 bits below PLACE, from the word shifted as `fraction` does."""
    LEFT: tl.constexpr = 19 - PLACE * 4
    moved = words << LEFT if LEFT >= 0 else words >> -LEFT
    return ((moved & (15 << 15)) | one).to(tl.float32, bitcast=True)


@triton.jit
def _run_sums(
    tile,
    centres,
    totals,
    sums,
    scale,
    offset,
    BITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    RUNS: tl.constexpr,
    RUN: tl.constexpr,
):
    """Add up runs of words, which one thread holds, and give them their groups' scales and offsets.

    `tile` is [BLOCK_N, RUNS * RUN], sums over the places of words; `centres` [1, RUNS] what it would be if
    all integers were the middle of their range; `totals` [1, RUNS] sums of x alone;
    `sums`, `scale` and `offset` are [BLOCK_N, RUNS].
    """
    STEPS: tl.constexpr = 1 << BITS
    run_sums = tl.sum(tl.reshape(tile, (BLOCK_N, RUNS, RUN)), axis=2)
    return sums + scale.to(tl.float32) * (STEPS * (run_sums - centres)) + offset.to(tl.float32) * totals


@triton.jit(do_not_specialize=["N", "one"])
def _grouped_vector_product(
    x,
    words,
    scales,
    offsets,
    factors,
    gain,
    bias,
    residual,
    out,
    N,
    one,
    eps,
    multiplier,
    K: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    RUN: tl.constexpr,
    NORM: tl.constexpr,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    GELU: tl.constexpr,
    ADD: tl.constexpr,
    DEPENDENT: tl.constexpr,
):
    if DEPENDENT:
        gdc_launch_dependents()
    PLACES: tl.constexpr = 32 // BITS
    W: tl.constexpr = GROUP // PLACES
    WORDS: tl.constexpr = K // PLACES
    GROUPS: tl.constexpr = K // GROUP
    RUNS: tl.constexpr = BLOCK_W // RUN
    MASKED: tl.constexpr = WORDS % BLOCK_W != 0
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    read = tl.minimum(outputs, N - 1).to(tl.int64)[:, None]  # the last program reads a row again
    other = N.to(tl.int64)
    sums = tl.zeros([BLOCK_N, RUNS], tl.float32)
    up_sums = tl.zeros([BLOCK_N, RUNS], tl.float32)
    squares = tl.zeros([BLOCK_W], tl.float32)
    for start in range(0, WORDS, BLOCK_W):
        word = start + tl.arange(0, BLOCK_W)
        tile = stream_columns(words + read * WORDS, word[None, :], WORDS, MASKED)
        if GATED:
            up_tile = stream_columns(words + (other + read) * WORDS, word[None, :], WORDS, MASKED)
        run = start // RUN + tl.arange(0, RUNS)
        # Runs beyond the row have totals of 0 and may take any scale that exists.
        group = tl.minimum(run // (W // RUN), GROUPS - 1)[None, :]
        scale = tl.load(scales + read * GROUPS + group)
        offset = tl.load(offsets + read * GROUPS + group)
        if GATED:
            up_scale = tl.load(scales + (other + read) * GROUPS + group)
            up_offset = tl.load(offsets + (other + read) * GROUPS + group)
        if DEPENDENT:
            gdc_wait()  # x is what the kernel ahead of this one computes
        first = (word // W) * GROUP + word % W
        by_word = tl.zeros([BLOCK_N, BLOCK_W], tl.float32)
        up_by_word = tl.zeros([BLOCK_N, BLOCK_W], tl.float32)
        lower = tl.zeros([BLOCK_N, BLOCK_W], tl.float32)
        up_lower = tl.zeros([BLOCK_N, BLOCK_W], tl.float32)
        totals = tl.zeros([BLOCK_W], tl.float32)
        lower_totals = tl.zeros([BLOCK_W], tl.float32)
        for i in tl.static_range(PLACES):
            v = load_columns(x, first + i * W, K, MASKED).to(tl.float32)
            if NORM:
                squares += v * v
                v = v * load_columns(gain, first + i * W, K, MASKED)
            totals += v
            if BITS == 4 and i % 2 == 0:
                lower_totals += v
                lower += _lower_fraction(tile, one, i + 1) * v[None, :]
                if GATED:
                    up_lower += _lower_fraction(up_tile, one, i + 1) * v[None, :]
            else:
                by_word += fraction(tile, one, i, BITS) * v[None, :]
                if GATED:
                    up_by_word += fraction(up_tile, one, i, BITS) * v[None, :]
        if BITS == 4:
            by_word += 16 * lower
            up_by_word += 16 * up_lower
        run_totals = tl.sum(tl.reshape(totals, (RUNS, RUN)), axis=1)[None, :]
        centres = 1.5 * run_totals + 15 * tl.sum(tl.reshape(lower_totals, (RUNS, RUN)), axis=1)[None, :]
        sums = _run_sums(by_word, centres, run_totals, sums, scale, offset, BITS, BLOCK_N, RUNS, RUN)
        if GATED:
            up_sums = _run_sums(
                up_by_word, centres, run_totals, up_sums, up_scale, up_offset, BITS, BLOCK_N, RUNS, RUN
            )
    y = tl.sum(sums, axis=1)
    up = tl.sum(up_sums, axis=1)
    if NORM:
        norm_factor = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
        y = y * norm_factor
        up = up * norm_factor
    store_result(
        y,
        up,
        factors,
        bias,
        outputs,
        N,
        residual,
        out,
        outputs,
        outputs < N,
        multiplier,
        True,
        BIAS,
        GATED,
        GELU,
        ADD,
    )


def grouped_vector_product(
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
    """See `TritonWeight.small_product`, for one row of x.

    Args:
        x: [1, in_features] contiguous.
        parts: of the matrix.
        gain: of the norm, or None.
        eps: of the norm.
        bias: [out_features] or None.
        activation: of the gate, or None.
        residual: [1, out_features] contiguous, or None.
        multiplier: of what is added to the residual.
        how: the matrix is cut, in words.

    Raises:
        ValueError: a dependent launch is asked for and Triton has none.
    """
    if how.dependent_launch and not HAS_DEPENDENT_LAUNCH:
        raise ValueError("this version of Triton has no dependent launches")
    options = {"launch_pdl": True} if how.dependent_launch else {}
    gated = activation is not None
    outputs = len(parts.words) // (1 + gated)
    out = residual
    if out is None:
        out = torch.empty(1, outputs, dtype=x.dtype, device=x.device)
    _grouped_vector_product[(triton.cdiv(outputs, how.block_n),)](
        x,
        *parts.tensors,
        gain,
        bias,
        residual,
        out,
        outputs,
        ONE,
        eps,
        multiplier,
        K=x.shape[1],
        BITS=parts.bits,
        GROUP=parts.group_size,
        BLOCK_N=how.block_n,
        BLOCK_W=how.block_k,
        RUN=math.gcd(parts.words_per_group, 4),
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
