"""The second launch: one program per row puts the blocks together and stores the row's token.

Rows with filters are drawn by exact rejection. Whatever filters keep is a prefix of the order (logit
downwards, token upwards), and the winner of a race among all is the winner among any of them that include it.
So the winner's own place in the order, and the weight of what comes before it, say whether it survives. If it
does not, nothing from it on does, and the race is held again among the tokens before it. That ends, because
each round cuts the order shorter and its first token always survives. A round's winner stands at a random
place, by weight, of what is left. So where survivors hold a share p of all weight, about 1 + ln(1 / p) rounds
are expected: 1.1 for top-p 0.9, and 13 if a single one of 128,256 equal tokens survives.

A round reads only blocks whose largest logit is not below the winner's, and a new race only the blocks whose
own winner is out and was faster than all others that are left: mostly one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rhizome_engine.sampling.triton.counter_rng import exponentials, row_key
from rhizome_engine.sampling.triton.order import comes_before, count_before
from rhizome_engine.sampling.triton.row_logits import (
    inverse_of,
    is_drawn,
    is_filtered,
    load_logits,
    mask_of_row,
    weights_of,
)
from rhizome_engine.sampling.triton.top_k import top_k_mass

_MOST_TURNS: tl.constexpr = tl.constexpr(20_000)
"""Far more than chance takes; so a row whose memory was overwritten meanwhile cannot hold a GPU for ever."""


@triton.jit
def _race_again(
    row_logits, words, is_masked, vocab_size, block, edge_logit, edge_token, largest, inverse, key,
    MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the fastest token of a block among those before the edge, its speed first; -1.0 if none is."""
    places = block * BLOCK + tl.arange(0, BLOCK)
    values = load_logits(row_logits, words, is_masked, places, places < vocab_size, MASKED)
    weights = weights_of(values, largest, inverse)
    runs = comes_before(values, places, edge_logit, edge_token) & (weights > 0.0)
    speed = tl.where(runs, weights / exponentials(key, places), -1.0)
    fastest = tl.max(speed, axis=0)
    return fastest, tl.min(tl.where(speed == fastest, places, vocab_size), axis=0)


@triton.jit
def sampling_decide(
    logits, row_stride, vocab_size,
    slots, positions, seeds, temperatures, top_ks, top_ps, min_ps,
    mask_of, mask_bits, mask_stride,
    tops, speeds, sums, held, floats_stride, winners,
    token_ids, table, table_stride, max_context,
    MASKED: tl.constexpr, NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    TILE: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """Choose a row's token from what `scan` left, and keep it in the table.

    Args (pointers unless said otherwise; those of `scan` are the same here):
        held: room for HELD float32 per row, rows `floats_stride` apart.
        token_ids: out, [n] int64; -1 where there is nothing to choose and in padding rows.
        table: [max_rows, max_context] int32, rows `table_stride` apart; -1 is stored as 0.
        BLOCKS: a power of two, no less than NUM_BLOCKS.
        TILE: blocks that are looked at together.
    """
    row = tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    position = tl.load(positions + row).to(tl.int64)
    chosen = tl.full((), -1, tl.int32)
    if slot >= 0:
        blocks = tl.arange(0, BLOCKS)
        at = row * floats_stride + blocks
        in_row = blocks < NUM_BLOCKS
        top = tl.load(tops + at, mask=in_row, other=float("-inf"))
        largest = tl.max(top, axis=0)
        if (largest > float("-inf")) & (largest < float("inf")):
            winner = tl.load(winners + row * NUM_BLOCKS + blocks, mask=in_row, other=0)
            temperature = tl.load(temperatures + row)
            top_k = tl.load(top_ks + row).to(tl.int32)
            if is_drawn(temperature, top_k):
                top_p = tl.load(top_ps + row)
                min_p = tl.load(min_ps + row)
                inverse = inverse_of(temperature)
                scale = weights_of(top, largest, inverse)
                speed = tl.load(speeds + at, mask=in_row, other=-1.0)
                speed = tl.where(scale > 0.0, speed * scale, -1.0)
                if is_filtered(top_k, top_p, min_p):
                    row_logits = logits + row.to(tl.int64) * row_stride
                    words, is_masked = mask_of_row(mask_of, mask_bits, mask_stride, row, MASKED)
                    key = row_key(tl.load(seeds + row), position)
                    limit = tl.where(top_k > 0, tl.minimum(top_k, vocab_size), vocab_size)
                    # float64: sums of equal weights must reach top-p exactly where they do in arithmetic.
                    nucleus = tl.full((), float("inf"), tl.float64)
                    if top_p < 1.0:
                        if limit < vocab_size:
                            nucleus = top_k_mass(
                                row_logits, words, is_masked, vocab_size, tops + row * floats_stride,
                                held + row * floats_stride, limit, largest, inverse,
                                MASKED, NUM_BLOCKS, BLOCK, BLOCKS, TILE, HELD,
                            )  # fmt: skip
                        else:
                            block_sums = tl.load(sums + at, mask=in_row, other=0.0)
                            nucleus = tl.sum(block_sums.to(tl.float64) * scale.to(tl.float64), axis=0)
                        nucleus = top_p.to(tl.float64) * nucleus
                    edge_logit = tl.full((), float("-inf"), tl.float32)  # behind the last token
                    edge_token = -1
                    turns = 0
                    while (chosen < 0) & (turns < _MOST_TURNS):
                        turns += 1
                        fastest = tl.max(speed, axis=0)
                        block = tl.min(tl.where(speed == fastest, blocks, BLOCKS), axis=0)
                        token = tl.sum(tl.where(blocks == block, winner, 0), axis=0)
                        value = tl.load(row_logits + token).to(tl.float32)
                        if comes_before(value, token, edge_logit, edge_token):
                            rank, mass = count_before(
                                row_logits, words, is_masked, vocab_size, tops + row * floats_stride,
                                value, token, largest, inverse, MASKED, NUM_BLOCKS, BLOCK, TILE,
                            )  # fmt: skip
                            likely = weights_of(value, largest, inverse) >= min_p
                            if (rank == 0) | ((rank < limit) & (mass < nucleus) & likely):
                                chosen = token
                            else:
                                edge_logit = value
                                edge_token = token
                        else:
                            again, place = _race_again(
                                row_logits, words, is_masked, vocab_size, block, edge_logit, edge_token,
                                largest, inverse, key, MASKED, BLOCK,
                            )  # fmt: skip
                            speed = tl.where(blocks == block, again, speed)
                            winner = tl.where(blocks == block, place, winner)
                else:
                    fastest = tl.max(speed, axis=0)
                    block = tl.min(tl.where(speed == fastest, blocks, BLOCKS), axis=0)
                    chosen = tl.sum(tl.where(blocks == block, winner, 0), axis=0)
            else:
                block = tl.min(tl.where(top == largest, blocks, BLOCKS), axis=0)
                chosen = tl.sum(tl.where(blocks == block, winner, 0), axis=0)
        if (position >= 0) & (position < max_context):
            tl.store(table + slot * table_stride + position, tl.maximum(chosen, 0))
    tl.store(token_ids + row, chosen.to(tl.int64))
