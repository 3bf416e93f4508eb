"""The order that filters cut: logit downwards, token upwards."""

from __future__ import annotations

import triton
import triton.language as tl

from rhizome_engine.sampling.triton.row_logits import load_logits, weights_of


@triton.jit
def comes_before(logits, tokens, logit, token):
    """Whether tokens come before a token in the order."""
    return (logits > logit) | ((logits == logit) & (tokens < token))


@triton.jit
def count_before(
    row_logits, words, is_masked, vocab_size, row_tops, logit, token, largest, inverse,
    MASKED: tl.constexpr, NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Return how many tokens come before one, int32, and their weight, float64.

    Tiles in which no logit is as large are not read. The sum does not depend on what else is computed.

    `row_tops` points to the largest logit of each block. The one is `logit` and `token`; with a token of -1,
    only larger logits come before. For `largest` and `inverse` see `row_logits.weights_of`.
    """
    count = tl.zeros([TILE * BLOCK], tl.int32)
    mass = tl.zeros([TILE * BLOCK], tl.float32)
    for start in range(0, NUM_BLOCKS, TILE):
        blocks = start + tl.arange(0, TILE)
        tops = tl.load(row_tops + blocks, mask=blocks < NUM_BLOCKS, other=float("-inf"))
        if tl.max(tops, axis=0) >= logit:
            places = start * BLOCK + tl.arange(0, TILE * BLOCK)
            values = load_logits(row_logits, words, is_masked, places, places < vocab_size, MASKED)
            before = comes_before(values, places, logit, token)
            count += before.to(tl.int32)
            mass += tl.where(before, weights_of(values, largest, inverse), 0.0)
    return tl.sum(count, axis=0), tl.sum(mass.to(tl.float64), axis=0)
