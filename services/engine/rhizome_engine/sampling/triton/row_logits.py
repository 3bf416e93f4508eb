"""How the kernels look at a row of logits."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_logits(row_logits, mask_words, is_masked, places, live, MASKED: tl.constexpr):
    """Return logits as float32: -inf where a token is banned or not live, +inf in place of NaN.

    A row that holds +inf or NaN has no distribution; this way its largest logit shows it.

    `row_logits` points to the row, `mask_words` to its words of a grammar's mask, which are read where the
    row `is_masked`; without MASKED no row is. `places` are the tokens, int32, and `live` says which exist.
    """
    if MASKED:
        words = tl.load(mask_words + (places >> 5), mask=live & is_masked, other=-1)
        live = live & (((words >> (places & 31)) & 1) != 0)
    logits = tl.load(row_logits + places, mask=live, other=float("-inf")).to(tl.float32)
    return tl.where(logits != logits, float("inf"), logits)


@triton.jit
def mask_of_row(mask_of, mask_bits, mask_stride, row, MASKED: tl.constexpr):
    """Return a pointer to a row's words and whether it has a mask; `mask_of` is negative where not."""
    index = 0
    if MASKED:
        index = tl.load(mask_of + row).to(tl.int32)
    words = mask_bits + tl.maximum(index, 0).to(tl.int64) * mask_stride
    return words, index >= 0


@triton.jit
def weights_of(logits, largest, inverse_temperature):
    """Return exp((logit - largest) / temperature), at most 1, and 0 for +inf, whose row is refused anyway."""
    finite = tl.where(logits < float("inf"), logits, float("-inf"))
    return tl.exp(tl.minimum((finite - largest) * inverse_temperature, 0.0))


@triton.jit
def inverse_of(temperature):
    """Return 1 / temperature; the least temperatures leave only the likeliest token, and finite numbers."""
    return 1.0 / tl.maximum(temperature, 1e-30)


@triton.jit
def is_drawn(temperature, top_k):
    """Whether chance decides: not in greedy rows, and top-k 1 is greedy."""
    return (temperature > 0.0) & (top_k != 1)


@triton.jit
def is_filtered(top_k, top_p, min_p):
    """Whether a drawn row leaves out tokens."""
    return (top_k > 0) | (top_p < 1.0) | (min_p > 0.0)
