"""The first pass: every logit is read once, and a block of them leaves four numbers."""

from __future__ import annotations

import triton
import triton.language as tl

from rhizome_engine.sampling.triton.counter_rng import exponentials, row_key
from rhizome_engine.sampling.triton.row_logits import (
    inverse_of,
    is_drawn,
    is_filtered,
    load_logits,
    mask_of_row,
    weights_of,
)


@triton.jit
def sampling_scan(
    logits, row_stride, vocab_size,
    slots, positions, seeds, temperatures, top_ks, top_ps, min_ps,
    mask_of, mask_bits, mask_stride,
    tops, speeds, sums, floats_stride, winners,
    MASKED: tl.constexpr, NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Reduce BLOCKS blocks of a row, each to its largest logit, its winner and what that one won with.

    A greedy row's winner is the first of the largest. In a drawn row it is the fastest of the block, whose
    speed is written for weights relative to the block's largest; with filters also the sum of those weights.
    A row's numbers do not depend on how many rows there are.

    Args (pointers unless said otherwise):
        logits: [n, vocab_size], rows `row_stride` apart.
        slots: [n], negative for padding rows, which write nothing; and the other settings, all [n].
        mask_of, mask_bits, mask_stride: see `row_logits.mask_of_row`.
        tops, speeds, sums: out, [n, NUM_BLOCKS] float32, rows `floats_stride` apart.
        winners: out, [n, NUM_BLOCKS] int32.
    """
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    if slot >= 0:
        blocks = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
        places = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        words, is_masked = mask_of_row(mask_of, mask_bits, mask_stride, row, MASKED)
        values = load_logits(
            logits + row.to(tl.int64) * row_stride, words, is_masked, places, places < vocab_size, MASKED
        )
        top = tl.max(values, axis=1)
        in_row = blocks < NUM_BLOCKS
        at = row * floats_stride + blocks
        tl.store(tops + at, top, mask=in_row)

        temperature = tl.load(temperatures + row)
        top_k = tl.load(top_ks + row)
        if is_drawn(temperature, top_k):
            # Where a block has no finite logit, any finite number keeps NaN out.
            largest = tl.where((top > float("-inf")) & (top < float("inf")), top, 0.0)
            weights = weights_of(values, largest[:, None], inverse_of(temperature))
            key = row_key(tl.load(seeds + row), tl.load(positions + row))
            speed = tl.where(weights > 0.0, weights / exponentials(key, places), -1.0)
            fastest = tl.max(speed, axis=1)
            first = tl.min(tl.where(speed == fastest[:, None], places, vocab_size), axis=1)
            tl.store(speeds + at, fastest, mask=in_row)
            tl.store(winners + row * NUM_BLOCKS + blocks, first, mask=in_row)
            if is_filtered(top_k, tl.load(top_ps + row), tl.load(min_ps + row)):
                tl.store(sums + at, tl.sum(weights, axis=1), mask=in_row)
        else:
            first = tl.min(tl.where(values == top[:, None], places, vocab_size), axis=1)
            tl.store(winners + row * NUM_BLOCKS + blocks, first, mask=in_row)
