"""Sums of hidden states over steps, by slot."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from rhizome_engine.batch import Batch, PooledRow
from rhizome_engine.embedding.pooling import EmbeddingParams, Pooling
from rhizome_engine.runner.pooling import PooledSums
from rhizome_testing.sampling_batch import sampling_batch

STATES = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))


def batch_of(chunks, params):
    """A step of chunks: (slot, start, end, whether the prompt ends there)."""
    lengths = [end - start for _, start, end, _ in chunks]
    return Batch(
        token_ids=np.zeros(sum(lengths), np.int64),
        positions=np.zeros(sum(lengths), np.int64),
        slot_mapping=np.zeros(sum(lengths), np.int64),
        query_start=np.cumsum([0, *lengths]).astype(np.int32),
        context_len=np.array([end for *_, end, _ in chunks], np.int32),
        page_table=np.zeros((len(chunks), 1), np.int32),
        slots=np.array([slot for slot, *_ in chunks], np.int64),
        sampling=sampling_batch([], [], 320, rows=[]),
        pooled=[
            PooledRow(row, slot, params, start == 0, ends)
            for row, (slot, start, _, ends) in enumerate(chunks)
            if ends or params.pooling is Pooling.MEAN or (params.pooling is Pooling.CLS and start == 0)
        ],
    )


def pool(sums, chunks, params, states=STATES):
    hidden = torch.cat([states[start:end] for _, start, end, _ in chunks])
    return sums.pool(hidden, batch_of(chunks, params), lambda x: x * 2)


def expected(pooling, num_tokens):
    states = 2 * STATES[:num_tokens]
    return {Pooling.MEAN: states.mean(0), Pooling.LAST_TOKEN: states[-1], Pooling.CLS: states[0]}[pooling]


@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("cuts", [(0, 40), (0, 1, 40), (0, 39, 40), (0, 7, 14, 40)])
def test_however_a_prompt_is_cut(pooling, cuts):
    params, sums = EmbeddingParams(pooling, normalize=False), PooledSums()
    for start, end in itertools.pairwise(cuts):
        vectors = pool(sums, [(3, start, end, end == 40)], params)
    torch.testing.assert_close(vectors, expected(pooling, 40)[None], rtol=1e-6, atol=1e-6)


def test_means_do_not_depend_on_the_cuts_at_all():
    params = EmbeddingParams(Pooling.MEAN)
    sums = PooledSums()
    whole = pool(sums, [(0, 0, 40, True)], params)
    for start in range(40):
        one_by_one = pool(sums, [(0, start, start + 1, start == 39)], params)
    assert torch.equal(whole, one_by_one) and whole.dtype == torch.float32
    assert whole.norm().item() == pytest.approx(1.0, abs=1e-6)


def test_rows_of_one_step_are_kept_apart():
    params, sums = EmbeddingParams(Pooling.MEAN, normalize=False), PooledSums()
    assert pool(sums, [(0, 0, 5, False), (1, 0, 9, False)], params) is None
    vectors = pool(sums, [(1, 9, 12, True), (2, 0, 4, True), (0, 5, 20, True)], params)
    for vector, num_tokens in zip(vectors, (12, 4, 20), strict=True):
        torch.testing.assert_close(vector, expected(Pooling.MEAN, num_tokens), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pooling", [Pooling.MEAN, Pooling.CLS])
def test_what_a_cancelled_prompt_left_in_a_slot_is_forgotten(pooling):
    params, sums = EmbeddingParams(pooling, normalize=False), PooledSums()
    pool(sums, [(0, 0, 30, False)], params, states=STATES + 100)
    pool(sums, [(0, 0, 10, False)], params)
    vectors = pool(sums, [(0, 10, 15, True)], params)
    torch.testing.assert_close(vectors[0], expected(pooling, 15), rtol=1e-6, atol=1e-6)


def test_a_vector_of_zeros_stays_one():
    vectors = pool(PooledSums(), [(0, 0, 3, True)], EmbeddingParams(), states=torch.zeros(3, 8))
    assert torch.equal(vectors, torch.zeros(1, 8))


def test_low_precision_states_are_summed_exactly():
    """Thousands of tokens in bfloat16 would otherwise stop growing."""
    states = torch.ones(5000, 4, dtype=torch.bfloat16)
    params = EmbeddingParams(Pooling.MEAN, normalize=False)
    assert torch.equal(pool(PooledSums(), [(0, 0, 5000, True)], params, states), torch.full((1, 4), 2.0))
