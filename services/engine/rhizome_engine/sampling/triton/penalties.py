"""Penalties, in place, at the cost of a row's history instead of its vocabulary.

One launch counts a row's tokens in the table's counters, the next takes each counter out and changes that
token's logit. Whoever finds a counter that is not zero changes it, once; afterwards all are zero again.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rhizome_engine.sampling.device_sampling import DeviceSampling
from rhizome_engine.sampling.token_table import TokenTable

_IN_PROMPT: tl.constexpr = tl.constexpr(1 << 30)
"""Set for a token of the prompt; the bits below count it in the output."""

_CHUNK = 1024
_PROGRAMS = 8
"""Per row. A history of 8,192 tokens takes each of them one look."""


def penalise(logits: Tensor, settings: DeviceSampling, table: TokenTable) -> None:
    """Change the logits of tokens that occurred, as `logit_edits` does.

    Args:
        logits: [n, vocab_size] float32, changed.
        settings: of these rows; neutral ones and padding rows cost next to nothing.
        table: holds the rows' earlier tokens.
    """
    vocab_size = logits.shape[1]
    counters = table.counters(vocab_size)
    grid = (len(logits), _PROGRAMS)
    common = (
        table.tokens, table.tokens.stride(0), counters, vocab_size,
        settings.slots, settings.positions, settings.num_prompt,
        settings.repetition_penalty, settings.frequency_penalty, settings.presence_penalty,
    )  # fmt: skip
    _count_for_penalties[grid](*common, CHUNK=_CHUNK, PROGRAMS=_PROGRAMS, num_warps=4)
    # As PyTorch rounds: a multiplication and a subtraction each on their own.
    _apply_penalties[grid](
        logits, logits.stride(0), *common,
        CHUNK=_CHUNK, PROGRAMS=_PROGRAMS, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit
def _known(tokens, tokens_stride, slot, places, length, vocab_size):
    """Return a slot's tokens at some places, and which of them exist."""
    found = tl.load(tokens + slot * tokens_stride + places, mask=places < length, other=-1)
    return found, (found >= 0) & (found < vocab_size)


@triton.jit
def _count_for_penalties(
    tokens, tokens_stride, counters, vocab_size,
    slots, positions, num_prompts, repetitions, frequencies, presences,
    CHUNK: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    repeats = tl.load(repetitions + row) != 1.0
    counts = (tl.load(frequencies + row) != 0.0) | (tl.load(presences + row) != 0.0)
    if (slot >= 0) & (repeats | counts):
        length = tl.load(positions + row).to(tl.int32)
        num_prompt = tl.load(num_prompts + row).to(tl.int32)
        start = tl.program_id(1) * CHUNK
        while start < length:
            places = start + tl.arange(0, CHUNK)
            found, known = _known(tokens, tokens_stride, slot, places, length, vocab_size)
            cells = counters + slot * vocab_size + found
            tl.atomic_or(cells, _IN_PROMPT, mask=known & (places < num_prompt), sem="relaxed")
            tl.atomic_add(cells, 1, mask=known & (places >= num_prompt), sem="relaxed")
            start += PROGRAMS * CHUNK


@triton.jit
def _apply_penalties(
    logits, row_stride, tokens, tokens_stride, counters, vocab_size,
    slots, positions, num_prompts, repetitions, frequencies, presences,
    CHUNK: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    repetition = tl.load(repetitions + row)
    frequency = tl.load(frequencies + row)
    presence = tl.load(presences + row)
    if (slot >= 0) & ((repetition != 1.0) | (frequency != 0.0) | (presence != 0.0)):
        length = tl.load(positions + row).to(tl.int32)
        row_logits = logits + row.to(tl.int64) * row_stride
        start = tl.program_id(1) * CHUNK
        while start < length:
            places = start + tl.arange(0, CHUNK)
            found, known = _known(tokens, tokens_stride, slot, places, length, vocab_size)
            taken = tl.atomic_xchg(counters + slot * vocab_size + found, 0, mask=known, sem="relaxed")
            owns = known & (taken != 0)
            old = tl.load(row_logits + found, mask=owns, other=0.0)
            new = tl.where(old > 0.0, tl.div_rn(old, repetition), old * repetition)
            count = (taken & (_IN_PROMPT - 1)).to(tl.float32)
            new = new - (frequency * count + tl.where(count > 0.0, presence, 0.0))
            tl.store(row_logits + found, new, mask=owns)
            start += PROGRAMS * CHUNK
