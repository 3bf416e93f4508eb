"""Block-wise reductions equal plain ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rhizome_engine.sampling.row_blocks import argmax, invert_sums

WIDTHS = [1, 5, 255, 256, 257, 1000, 1024]


@pytest.mark.parametrize("width", WIDTHS)
def test_argmax_is_the_first_largest(width):
    values = torch.from_numpy(np.random.default_rng(0).integers(-9, 0, (50, width))).float()
    largest, places = argmax(values)
    assert places.tolist() == values.numpy().argmax(axis=-1).tolist()
    assert torch.equal(largest, values.amax(dim=-1))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_fraction_finds_the_place_where_the_running_sum_passes_it(width):
    rng = np.random.default_rng(width)
    weights = rng.random((200, width)).astype(np.float32) * (rng.random((200, width)) < 0.7)
    weights[:, width // 2] = 1.0
    fractions = rng.random((200, 1))
    places, valid = invert_sums(torch.from_numpy(weights), torch.from_numpy(fractions))
    assert valid.all()
    sums = weights.astype(np.float64).cumsum(axis=-1)
    target = (fractions * sums[:, -1:])[:, 0]
    row, place = np.arange(200), places.numpy()
    assert (weights[row, place] > 0).all()
    assert (sums[row, place] >= target - 1e-4).all()
    assert (sums[row, place] - weights[row, place] <= target + 1e-4).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_extremes_are_the_first_and_the_last_place_with_a_weight(width):
    weights = torch.rand(100, width, generator=torch.Generator().manual_seed(width)) + 0.01
    weights[50:, :1] = weights[50:, -1:] = 0.0
    if width < 3:
        weights = weights[:50]
    first, _ = invert_sums(weights, torch.zeros(len(weights), 1).double())
    last, _ = invert_sums(weights, torch.full((len(weights), 1), 1.0 - 2.0**-53).double())
    assert first.tolist() == [0] * 50 + [1] * (len(weights) - 50)
    assert last.tolist() == [width - 1] * 50 + [width - 2] * (len(weights) - 50)


def test_rows_that_are_no_distributions_are_told_apart():
    weights = torch.ones(4, 700)
    weights[0] = 0.0
    weights[1, 3] = torch.nan
    weights[2, 600] = torch.inf
    places, valid = invert_sums(weights, torch.full((4, 1), 0.5).double())
    assert valid.tolist() == [False, False, False, True]
    assert (places < 700).all()
