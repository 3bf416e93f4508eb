"""Filters look at few tokens first, or search a whole vocabulary in two ways; that must not show."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from rhizome_engine.sampling import draw
from rhizome_engine.sampling.candidates import likeliest
from rhizome_engine.sampling.draw import NUM_CANDIDATES, DrawSettings, draw_filtered, draw_from_top_k
from rhizome_engine.sampling.truncation import truncate_by_bisection, truncate_by_sorting

VOCAB = 8 * NUM_CANDIDATES + 5
FILTERS = list(
    itertools.product([0, 1, 50, NUM_CANDIDATES, NUM_CANDIDATES + 1, 1000], [1.0, 0.9, 0.2], [0.0, 0.3])
)


def survivors_by_hand(probs, top_k, top_p, min_p):
    """The tokens that stay, by sorting everything."""
    order = np.lexsort((np.arange(len(probs)), -probs))
    kept = order[: top_k or None]
    before = np.cumsum(probs[kept]) - probs[kept]
    if top_p < 1:
        kept = kept[(before < np.float32(top_p) * probs[kept].sum()) | (np.arange(len(kept)) == 0)]
    return set(kept[probs[kept] >= np.float32(min_p) * probs[order[0]]].tolist())


def distributions(vocab_size=VOCAB):
    rng = np.random.default_rng(0)
    for spread in (0.1, 1.0, 3.0, 8.0):
        yield rng.normal(0, spread, vocab_size)
    # Many equal values, within the candidates and across their edge.
    yield np.round(rng.normal(0, 2, vocab_size))
    yield np.zeros(vocab_size)


def columns(filters):
    """The filters as the settings of as many rows."""
    top_k, top_p, min_p = (torch.tensor(column)[:, None] for column in zip(*filters, strict=True))
    return top_k, top_p.float(), min_p.float()


@pytest.mark.parametrize("logits", list(distributions()))
@pytest.mark.parametrize("truncate", [truncate_by_sorting, truncate_by_bisection])
def test_the_survivors_are_those_of_a_sort_by_probability_and_token(truncate, logits):
    probs = torch.from_numpy(logits).softmax(dim=-1).float().expand(len(FILTERS), -1).contiguous()
    kept = truncate(probs, *columns(FILTERS))
    for row, filters in enumerate(FILTERS):
        expected = survivors_by_hand(probs[row].double().numpy(), *filters)
        # Sums of equal numbers that reach top-p exactly, or not, by rounding.
        found = set(kept[row].nonzero()[:, 0].tolist())
        assert len(found ^ expected) <= (1 if filters[1] < 1 else 0), filters
        assert torch.equal(kept[row][kept[row] > 0], probs[row][kept[row] > 0])


@pytest.mark.parametrize("logits", list(distributions())[:-1])  # where no sum is exactly top-p
@pytest.mark.parametrize("sync_free", [False, True])
def test_candidates_and_the_whole_vocabulary_draw_the_same_tokens(monkeypatch, sync_free, logits):
    """Every row is drawn as it is, and with so many candidates that nothing is left to search."""
    repeats = 20
    rows = len(FILTERS) * repeats
    top_k, top_p, min_p = (column.repeat_interleave(repeats, dim=0) for column in columns(FILTERS))
    settings = DrawSettings(
        torch.arange(rows)[:, None],
        torch.ones(rows, 1, dtype=torch.int64),
        torch.ones(rows, 1),
        top_k,
        top_p,
        min_p,
    )
    batch = torch.from_numpy(logits).float().expand(rows, -1).contiguous()
    drawn = draw_filtered(batch, settings, sync_free=sync_free)
    monkeypatch.setattr(draw, "NUM_CANDIDATES", VOCAB)
    by_sorting = draw_filtered(batch, settings, sync_free=False)
    assert drawn.valid.all() and by_sorting.valid.all()
    # Sums in another order: a number on the edge of two tokens may fall to either.
    assert (drawn.tokens != by_sorting.tokens).sum() <= rows // 500


def test_a_top_k_whose_last_token_has_many_equals_keeps_the_first_of_them():
    count, k = 600, 5
    logits = torch.zeros(count, VOCAB)
    logits[:, 1000:1003] = 1.0
    ones = torch.ones(count, 1)
    numbers = torch.arange(count)[:, None]
    settings = DrawSettings(numbers, numbers, ones, ones.long() * k, ones, ones * 0)
    drawn = draw_from_top_k(logits, settings, sync_free=False)
    assert set(drawn.tokens.tolist()) == {0, 1, 1000, 1001, 1002}
    anywhere = draw_from_top_k(logits[:1].expand(count, -1), settings, sync_free=True)
    assert len(set(anywhere.tokens.tolist())) == k


@pytest.mark.parametrize("vocab_size", [5, 100, 9000, 9216, 9217])
@pytest.mark.parametrize("count", [1, 20, 256])
def test_the_likeliest_are_those_of_a_sort(vocab_size, count):
    logits = torch.randn(7, vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    found = likeliest(logits, count)
    expected = logits.sort(dim=-1, descending=True)
    width = min(count, vocab_size)
    assert torch.equal(found.tokens.gather(1, found.order), expected.indices[:, :width])
    assert torch.equal(found.logits.gather(1, found.order), expected.values[:, :width])
    assert (found.tokens.diff(dim=-1) > 0).all()


def test_a_usual_nucleus_needs_no_search_of_the_vocabulary(monkeypatch):
    def refuse(*_):
        raise AssertionError("searched")

    monkeypatch.setattr(draw, "truncate_by_sorting", refuse)
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(1)) * 4
    ones = torch.ones(4, 1)
    settings = DrawSettings(ones.long(), ones.long(), ones, ones.long() * 0, ones * 0.9, ones * 0)
    assert draw_filtered(logits, settings, sync_free=False).valid.all()
    with pytest.raises(AssertionError, match="searched"):
        draw_filtered(logits * 0.01, settings, sync_free=False)
