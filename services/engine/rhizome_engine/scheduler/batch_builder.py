"""Turns a step as it was decided into the flat arrays that the model runner reads.

Rows that decode cost no Python each; the only loops are over chunks.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from rhizome_engine.batch import Batch, Int64, PooledRow, PromptScores, SlotHistory
from rhizome_engine.sampling.rows import SamplingRows
from rhizome_engine.scheduler.slots import SlotTable
from rhizome_engine.scheduler.step_plan import Chunk, StepPlan


def build_batch(plan: StepPlan, slots: SlotTable, sampling: SamplingRows, page_size: int) -> Batch:
    """Lay out a step.

    Args:
        plan: at least one row; pages for its tokens are reserved.
        slots: page tables and last tokens.
        sampling: how the requests choose tokens.
        page_size: tokens per page.
    """
    num_decode, chunks = len(plan.decode), plan.chunks
    row_slots = np.concatenate([plan.decode_slots, _column(chunk.request.slot for chunk in chunks)])
    lengths = np.concatenate([np.ones(num_decode, np.int64), _column(chunk.num_tokens for chunk in chunks)])
    starts = np.concatenate([plan.decode_positions, _column(chunk.start for chunk in chunks)])
    context_len = starts + lengths
    query_start = np.zeros(len(row_slots) + 1, np.int32)
    np.cumsum(lengths, out=query_start[1:])
    num_pages = -(-int(context_len.max()) // page_size)
    page_table = slots.page_table[row_slots, :num_pages]
    tokens: list[Int64] = [slots.last_token[plan.decode_slots]]
    tokens += [chunk.request.token_ids[chunk.start : chunk.end].astype(np.int64) for chunk in chunks]
    if chunks:
        row_of_token = np.repeat(np.arange(len(row_slots)), lengths)
        positions = np.arange(int(query_start[-1])) + (starts - query_start[:-1])[row_of_token]
    else:
        row_of_token, positions = np.arange(num_decode), starts
    page_index, offset = np.divmod(positions, page_size)
    late = np.flatnonzero(slots.confirmed[plan.decode_slots] <= plan.decode_positions)
    sampled_rows = np.concatenate(
        [np.arange(num_decode), num_decode + np.flatnonzero([chunk.samples for chunk in chunks])]
    ).astype(np.int64)
    return Batch(
        token_ids=np.concatenate(tokens),
        positions=positions,
        slot_mapping=page_table[row_of_token, page_index].astype(np.int64) * page_size + offset,
        query_start=query_start,
        context_len=context_len.astype(np.int32),
        page_table=page_table,
        slots=row_slots,
        sampling=sampling.build(sampled_rows, plan.sampled_slots, plan.sampled_positions),
        late=late,
        late_slots=plan.decode_slots[late],
        histories=[SlotHistory(request.slot, request.token_ids.copy()) for request in plan.new_histories],
        page_copies=plan.page_copies,
        prompt_scores=[
            _prompt_scores(row, chunk)
            for row, chunk in enumerate(chunks, num_decode)
            if chunk.score_end > chunk.start + 1
        ],
        pooled=[
            PooledRow(row, chunk.request.slot, embedding, chunk.start == 0, chunk.gives_vector)
            for row, chunk in enumerate(chunks, num_decode)
            if chunk.is_pooled and (embedding := chunk.request.embedding) is not None
        ],
        constrained=bool(slots.constrained[plan.sampled_slots].any()),
    )


def _prompt_scores(row: int, chunk: Chunk) -> PromptScores:
    """Ask for the log probabilities of the prompt tokens that follow a chunk's tokens."""
    targets = chunk.request.token_ids[chunk.start + 1 : chunk.score_end].astype(np.int64)
    return PromptScores(row, targets, chunk.request.prompt_logprobs or 0)


def _column(numbers: Iterable[int]) -> Int64:
    return np.fromiter(numbers, np.int64)
