"""Filters look at few candidates first; that must not show."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from rhizome_engine.sampling import truncation
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.sampling.truncation import NUM_CANDIDATES, truncate

VOCAB = 8 * NUM_CANDIDATES


def survivors_by_hand(probs, params):
    """The tokens that stay, by sorting everything."""
    order = np.lexsort((np.arange(VOCAB), -probs))
    kept = order[: params.top_k or VOCAB]
    before = np.cumsum(probs[kept]) - probs[kept]
    if params.top_p < 1:
        kept = kept[(before < params.top_p * probs[kept].sum()) | (np.arange(len(kept)) == 0)]
    return set(kept[probs[kept] >= np.float32(params.min_p) * probs[order[0]]].tolist())


def distributions():
    rng = np.random.default_rng(0)
    for spread in (0.1, 1.0, 3.0, 8.0):
        yield rng.normal(0, spread, VOCAB)
    # Many equal values, within the candidates and across their edge.
    yield np.round(rng.normal(0, 2, VOCAB))
    yield np.zeros(VOCAB)


@pytest.mark.parametrize("logits", list(distributions()))
def test_the_survivors_are_those_of_a_full_sort(logits):
    settings = [
        SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p)
        for top_k, top_p, min_p in itertools.product(
            [0, 1, 50, NUM_CANDIDATES, NUM_CANDIDATES + 1, 1000], [1.0, 0.9, 0.2], [0.0, 0.3]
        )
    ]
    probs = torch.from_numpy(logits).softmax(dim=-1).float().expand(len(settings), -1).contiguous()
    kept = truncate(probs, settings)
    for row, params in enumerate(settings):
        expected = survivors_by_hand(probs[row].double().numpy(), params)
        # min-p compares float32 products; a token on the very edge may go either way.
        assert set(kept[row].nonzero()[:, 0].tolist()) == expected, params
        assert torch.equal(kept[row][kept[row] > 0], probs[row][kept[row] > 0])


def test_a_usual_nucleus_needs_no_full_sort(monkeypatch):
    counts = []
    original = truncation._likeliest
    monkeypatch.setattr(
        truncation, "_likeliest", lambda probs, count: counts.append(count) or original(probs, count)
    )
    logits = torch.from_numpy(np.random.default_rng(1).normal(0, 3, (4, VOCAB)))
    truncate(logits.softmax(dim=-1).float(), [SamplingParams(top_p=0.9)] * 4)
    assert counts == [NUM_CANDIDATES]
