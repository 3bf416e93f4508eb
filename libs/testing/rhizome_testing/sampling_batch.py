"""Sampling arrays of a step without a scheduler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rhizome_engine.batch import SamplingBatch
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.sampling.rows import SamplingRows


def sampling_batch(
    params: Sequence[SamplingParams],
    positions: Sequence[int],
    vocab_size: int,
    *,
    rows: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    num_prompt: Sequence[int] | None = None,
) -> SamplingBatch:
    """Rows that need a token; a row's slot is its number.

    Args:
        params: how each chooses.
        positions: of the new tokens.
        vocab_size: of the model.
        rows: rows of the batch, ascending; all in turn where absent.
        seeds: 0 where absent.
        num_prompt: tokens of each prompt; all before the new token where absent.
    """
    numbers = list(range(len(params)) if rows is None else rows)
    table = SamplingRows(max(numbers, default=0) + 1, vocab_size)
    for index, row in enumerate(numbers):
        seed = 0 if seeds is None else seeds[index]
        prompt = positions[index] if num_prompt is None else num_prompt[index]
        table.set(row, params[index], seed, prompt, frozenset(), 0)
    column = np.array(numbers, np.int64)
    return table.build(column, column, np.array(positions, np.int64))
