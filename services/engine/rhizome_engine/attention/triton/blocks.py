"""What the attention kernels share: reading a block of keys from its pages, and folding it into a result.

A result is kept as three running values per query (arXiv 2112.05682, 2205.14135):

    top      the highest score so far, in powers of two
    total    the sum of 2 ** (score - top)
    weighted the sum of 2 ** (score - top) * value
"""

from __future__ import annotations

import triton
import triton.language as tl

from rhizome_engine.kernels.triton.interpreter import let_scalars_count
from rhizome_engine.kernels.triton.runtime import interpreted

if interpreted():
    let_scalars_count()

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def slots_of_block(table, block, length, BLOCK: tl.constexpr, PAGE_SIZE: tl.constexpr):
    """Return the slots [BLOCK] int64 of a block of a row's keys, from the row's pages.

    Beyond the row's length stands some slot; who loads must not read it.
    """
    places = tl.arange(0, BLOCK)
    if PAGE_SIZE % BLOCK == 0:  # the block lies in one page
        first = block * BLOCK
        page = tl.load(table + first // PAGE_SIZE).to(tl.int64)
        slots = page * PAGE_SIZE + first % PAGE_SIZE + places
    else:
        positions = block * BLOCK + places
        pages = tl.load(table + positions // PAGE_SIZE, mask=positions < length, other=0).to(tl.int64)
        slots = pages * PAGE_SIZE + positions % PAGE_SIZE
    return slots


@triton.jit
def turned(
    head_start,
    there,
    gain,
    cos,
    sin,
    eps,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    HALF: tl.constexpr,
    NORM: tl.constexpr,
):
    """Return heads [heads, PADDED_DIM] of one token in float32, normalised and rotated.

    HALF is half the rotated width, 0 for none. The other element of a pair is read once more, from the cache.
    """
    dims = tl.arange(0, PADDED_DIM)
    x = tl.load(head_start + dims[None, :], mask=there, other=0.0).to(tl.float32)
    result = x
    if NORM:
        root = tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
        result = x * root * tl.load(gain + dims, mask=dims < HEAD_DIM, other=0.0)[None, :]
    if HALF > 0:
        in_first = dims < HALF
        rotated = dims < 2 * HALF
        partner = tl.where(in_first, dims + HALF, dims - HALF)
        angle = tl.where(in_first, dims, dims - HALF)
        other = tl.load(head_start + partner[None, :], mask=there & rotated[None, :], other=0.0)
        other = other.to(tl.float32)
        if NORM:
            other = other * root * tl.load(gain + partner, mask=rotated, other=0.0)[None, :]
        cosine = tl.load(cos + angle, mask=rotated, other=1.0)
        sine = tl.load(sin + angle, mask=rotated, other=0.0)
        sine = tl.where(in_first, -sine, sine)
        result = result * cosine[None, :] + other * sine[None, :]
    return result


@triton.jit
def product(left, right, WIDE: tl.constexpr):
    """Multiply matrices into float32; WIDE where their own type cannot be multiplied, in the interpreter."""
    if WIDE:
        result = tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    else:
        result = tl.dot(left, right, input_precision="ieee")
    return result


@triton.jit
def finished(scores, scale, softcap, CAPPED: tl.constexpr):
    """Turn products of queries and keys into scores in powers of two, capped where the layer says so."""
    scores = scores * scale
    if CAPPED:
        # tanh through a power that cannot overflow
        ratio = scores / softcap
        power = tl.exp2(-2.0 * LOG2_E * tl.abs(ratio))
        size = softcap * (1.0 - power) / (1.0 + power)
        scores = tl.where(ratio < 0.0, -size, size)
    return scores * LOG2_E


@triton.jit
def fold(scores, v, top, total, weighted, WIDE: tl.constexpr):
    """Take a block's scores [queries, keys], -inf for hidden ones, and its values into the running result."""
    new_top = tl.maximum(top, tl.max(scores, 1))
    # A query that has seen no key yet has no highest score; any number will do in its place.
    shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(scores - shift[:, None])
    kept = tl.exp2(top - shift)
    total = total * kept + tl.sum(weights, 1)
    if WIDE:
        weighted = weighted * kept[:, None] + product(weights, v, WIDE)
    else:
        weighted = weighted * kept[:, None] + product(weights.to(v.dtype), v, WIDE)
    return new_top, total, weighted
