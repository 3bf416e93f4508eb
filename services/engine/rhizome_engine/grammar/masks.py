"""Token masks of a whole step, filled by native threads without the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from rhizome_engine.batch import Int32, TokenMasks
from rhizome_grammar.matcher import GrammarMatcher

if TYPE_CHECKING:
    from llguidance import LLExecutor

MAX_THREADS = 8


def mask_buffer(max_rows: int, vocab_size: int) -> Int32:
    """Memory for the masks of a step, to be passed to `fill_masks` again and again."""
    return np.zeros((max_rows, (vocab_size + 31) // 32), np.int32)


def fill_masks(
    matchers: Sequence[tuple[int, GrammarMatcher]], vocab_size: int, buffer: Int32 | None = None
) -> TokenMasks:
    """Work out which tokens may come next in each row.

    A row whose matcher fails gets a mask that allows nothing, and its `error` is set; the others are not
    affected. End-of-sequence is allowed exactly where `may_end`.

    Args:
        matchers: (row of the sampling batch, its matcher), rows ascending, every matcher once.
        vocab_size: of the model, as the matchers' compiler was told.
        buffer: from `mask_buffer`, overwritten, and referred to by the result; None allocates.
    """
    count = len(matchers)
    rows = np.fromiter((row for row, _ in matchers), np.int64, count)
    if buffer is None:
        buffer = mask_buffer(count, vocab_size)
    bits = buffer[:count]
    if not count:
        return TokenMasks(rows, bits)
    if any(matcher.vocab_size != vocab_size for _, matcher in matchers):
        raise ValueError(f"a grammar was compiled for another vocabulary than {vocab_size} tokens")
    assert (
        bits.dtype == np.int32 and bits.flags.c_contiguous and bits.shape == (count, (vocab_size + 31) // 32)
    )
    _fill(bits, [(matcher, index) for index, (_, matcher) in enumerate(matchers)])
    failed = [(matcher, index) for index, (_, matcher) in enumerate(matchers) if matcher.native.is_error()]
    if failed:
        _fill_again(bits, failed)
    return TokenMasks(rows, bits)


def _fill(bits: Int32, places: list[tuple[GrammarMatcher, int]]) -> None:
    _executor().unsafe_compute_mask_ptr(
        [(matcher.native, index) for matcher, index in places], bits.ctypes.data, bits.strides[0], len(bits)
    )


def _fill_again(bits: Int32, failed: list[tuple[GrammarMatcher, int]]) -> None:
    """Give those that failed by another request's doing their masks; for the rest nothing is allowed.

    The library's own mask of a failed matcher allows end-of-sequence, which would pass for a finished text.
    """
    recovered = [(matcher, index) for matcher, index in failed if matcher.recover()]
    if recovered:
        _fill(bits, recovered)
    for matcher, index in failed:
        if matcher.native.is_error():
            matcher.recover()
            bits[index] = 0


@cache
def _executor() -> LLExecutor:
    """Threads for masks, shared by all engines of the process."""
    from llguidance import LLExecutor

    return LLExecutor(max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) // 2)))
