"""The weight of a row's k likeliest tokens, which top-p is a share of where both filters are on."""

from __future__ import annotations

import triton
import triton.language as tl

from rhizome_engine.sampling.triton.order import comes_before, count_before
from rhizome_engine.sampling.triton.row_logits import load_logits, weights_of

_CHUNK: tl.constexpr = tl.constexpr(32)
"""Rivals that are compared with all others at once."""


@triton.jit
def top_k_mass(
    row_logits, words, is_masked, vocab_size, row_tops, held, limit, largest, inverse,
    MASKED: tl.constexpr, NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    TILE: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """Return the summed weights of the `limit` largest logits, float64.

    The k-th largest of the blocks' largest logits is no larger than the k-th largest logit, and mostly few
    more than k tokens reach it: they are put aside in one pass, into HELD float32 at `held`, and compared
    among themselves. Where k, which is `limit`, exceeds the number of blocks, or more tokens reach it than
    there is room for, the k-th largest logit is found by bisection.
    """
    floor = float("-inf")
    if limit <= NUM_BLOCKS:
        floor = _kth_top(row_tops, limit, NUM_BLOCKS, BLOCKS)
    found = HELD + 1
    if floor > float("-inf"):
        found = _put_aside(
            row_logits,
            words,
            is_masked,
            vocab_size,
            row_tops,
            held,
            floor,
            MASKED,
            NUM_BLOCKS,
            BLOCK,
            TILE,
            HELD,
        )
    mass = tl.full((), 0.0, tl.float64)
    if found <= HELD:
        mass = _mass_of_held(held, found, limit, largest, inverse, HELD)
    else:
        edge = _kth_logit(
            row_logits, words, is_masked, vocab_size, row_tops, limit, floor, largest, inverse,
            MASKED, NUM_BLOCKS, BLOCK, TILE,
        )  # fmt: skip
        count, above = count_before(
            row_logits, words, is_masked, vocab_size, row_tops, edge, -1, largest, inverse,
            MASKED, NUM_BLOCKS, BLOCK, TILE,
        )  # fmt: skip
        # Of those that equal the edge, as many as are missing.
        mass = above + (limit - count).to(tl.float64) * weights_of(edge, largest, inverse).to(tl.float64)
    return mass


@triton.jit
def _kth_top(row_tops, limit, NUM_BLOCKS: tl.constexpr, BLOCKS: tl.constexpr):
    """Return the `limit`-th largest of the blocks' largest logits; there are as many blocks."""
    blocks = tl.arange(0, BLOCKS)
    tops = tl.load(row_tops + blocks, mask=blocks < NUM_BLOCKS, other=float("-inf"))
    rank = tl.zeros([BLOCKS], tl.int32)
    for start in range(0, NUM_BLOCKS, _CHUNK):
        rivals = start + tl.arange(0, _CHUNK)
        of_rivals = tl.load(row_tops + rivals, mask=rivals < NUM_BLOCKS, other=float("-inf"))
        ahead = comes_before(of_rivals[None, :], rivals[None, :], tops[:, None], blocks[:, None])
        rank += tl.sum(ahead.to(tl.int32), axis=1)
    return tl.max(tl.where(rank == limit - 1, tops, float("-inf")), axis=0)


@triton.jit
def _put_aside(
    row_logits, words, is_masked, vocab_size, row_tops, held, floor,
    MASKED: tl.constexpr, NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    HELD: tl.constexpr,
):  # fmt: skip
    """Write the logits that are not below `floor`, at most HELD of them, and return how many there are."""
    found = 0
    for start in range(0, NUM_BLOCKS, TILE):
        blocks = start + tl.arange(0, TILE)
        tops = tl.load(row_tops + blocks, mask=blocks < NUM_BLOCKS, other=float("-inf"))
        if tl.max(tops, axis=0) >= floor:
            places = start * BLOCK + tl.arange(0, TILE * BLOCK)
            values = load_logits(row_logits, words, is_masked, places, places < vocab_size, MASKED)
            reaches = (values >= floor).to(tl.int32)
            at = found + tl.cumsum(reaches, axis=0) - 1
            tl.store(held + at, values, mask=(reaches > 0) & (at < HELD))
            found += tl.sum(reaches, axis=0)
    tl.debug_barrier()  # other threads of this program read them
    return found


@triton.jit
def _mass_of_held(held, found, limit, largest, inverse, HELD: tl.constexpr):
    """Return the weights of the `limit` largest of the logits put aside; which of equals does not matter."""
    places = tl.arange(0, HELD)
    values = tl.load(held + places, mask=places < found, other=float("-inf"))
    rank = tl.zeros([HELD], tl.int32)
    for start in range(0, HELD, _CHUNK):
        rivals = start + tl.arange(0, _CHUNK)
        of_rivals = tl.load(held + rivals, mask=rivals < found, other=float("-inf"))
        ahead = comes_before(of_rivals[None, :], rivals[None, :], values[:, None], places[:, None])
        rank += tl.sum(ahead.to(tl.int32), axis=1)
    weights = tl.where(rank < limit, weights_of(values, largest, inverse), 0.0)
    return tl.sum(weights.to(tl.float64), axis=0)


@triton.jit
def _kth_logit(
    row_logits, words, is_masked, vocab_size, row_tops, limit, floor, largest, inverse,
    MASKED: tl.constexpr, NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Return the least float from `floor` on above which there are no more than `limit` logits.

    At most 32 passes, over the bit patterns between; it ends early where exactly so many are above.
    """
    low = _ordered(floor).to(tl.int64)
    high = _ordered(largest).to(tl.int64)
    while low < high:
        middle = low + ((high - low) >> 1)
        count, _ = count_before(
            row_logits, words, is_masked, vocab_size, row_tops, _float_of(middle), -1,
            largest, inverse, MASKED, NUM_BLOCKS, BLOCK, TILE,
        )  # fmt: skip
        high = tl.where(count <= limit, middle, high)
        low = tl.where(count < limit, low, tl.where(count == limit, middle, middle + 1))
    return _float_of(high)


@triton.jit
def _ordered(value):
    """Return an int32 that orders as float32 does: its bits, all but the sign turned where it is negative."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _float_of(ordered):
    """Return the float32 of `_ordered`, given as int64."""
    bits = ordered.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
