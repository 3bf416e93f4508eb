"""Turns chunks of requests into the flat arrays that the model runner reads.

The only Python loops are over rows; everything per token is numpy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rhizome_engine.batch import Batch, SampleRow
from rhizome_engine.scheduler.request import Request


class Chunk(NamedTuple):
    """Work of one request in one step: its next `num_tokens` known tokens that are not computed yet."""

    request: Request
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether computed tokens catch up with known ones, so that a new token follows."""
        return self.request.num_computed + self.num_tokens == self.request.num_tokens


def build_batch(chunks: list[Chunk], page_size: int) -> Batch:
    """Lay out a step.

    Args:
        chunks: at least one; pages for their tokens are reserved.
        page_size: tokens per page.
    """
    num_rows = len(chunks)
    lengths = np.empty(num_rows, np.int64)
    starts = np.empty(num_rows, np.int64)
    runs, page_rows, sample_rows = [], [], []
    for row, chunk in enumerate(chunks):
        request, count = chunk
        start = request.num_computed
        lengths[row], starts[row] = count, start
        runs.append(request.token_ids[start : start + count])
        assert request.pages is not None
        page_rows.append(request.pages.pages)
        if start + count == request.num_tokens:
            sample_rows.append(_sample_row(row, request))
    page_table = np.zeros((num_rows, max(map(len, page_rows))), np.int32)
    for row, pages in enumerate(page_rows):
        page_table[row, : len(pages)] = pages
    query_start = np.zeros(num_rows + 1, np.int32)
    np.cumsum(lengths, out=query_start[1:])
    row_of_token = np.repeat(np.arange(num_rows), lengths)
    positions = np.arange(query_start[-1]) + (starts - query_start[:-1])[row_of_token]
    page_index, offset = np.divmod(positions, page_size)
    return Batch(
        token_ids=np.concatenate(runs).astype(np.int64),
        positions=positions,
        slot_mapping=page_table[row_of_token, page_index].astype(np.int64) * page_size + offset,
        query_start=query_start,
        context_len=(starts + lengths).astype(np.int32),
        page_table=page_table,
        sample_rows=sample_rows,
    )


def _sample_row(row: int, request: Request) -> SampleRow:
    return SampleRow(
        row=row,
        params=request.params,
        position=request.num_tokens,
        seed=request.seed,
        prompt_ids=request.prompt_ids,
        output_ids=request.output_ids,
        banned_ids=request.banned_ids,
    )
