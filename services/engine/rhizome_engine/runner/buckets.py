"""For how many rows and tokens steps are recorded: few enough to record, dense enough to waste little."""

from __future__ import annotations

from bisect import bisect_left

PREFILL_TOKENS = (64, 128, 256, 512)
"""Above, a step has so much to compute that launching its kernels one by one costs nothing."""
PREFILL_ROWS = (8, 64)
"""A few prompts, and a prompt beside many rows that decode."""


def decode_buckets(max_rows: int) -> list[int]:
    """Row counts of recorded decode steps, ascending; the last one is `max_rows`.

    1, 2, 4, 8, then every 8th up to 64, every 16th up to 256, every 32nd beyond.
    """
    grid = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_rows + 32, 32)]
    return [*(rows for rows in grid if rows < max_rows), max_rows]


def prefill_buckets(max_tokens: int) -> list[int]:
    """Token counts of recorded prefills, ascending, as far as a step may have so many."""
    return sorted({min(tokens, max_tokens) for tokens in PREFILL_TOKENS})


def prefill_rows(tokens: int, max_rows: int) -> list[int]:
    """Row counts of recorded prefills of so many tokens, ascending; each row has one token at least."""
    return sorted({min(rows, tokens, max_rows) for rows in PREFILL_ROWS})


def smallest_bucket(buckets: list[int], count: int) -> int | None:
    """The smallest that holds so many; None where none does."""
    index = bisect_left(buckets, count)
    return buckets[index] if index < len(buckets) else None
