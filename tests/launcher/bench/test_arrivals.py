"""Arrivals of an open loop keep their rate and their burstiness."""

from __future__ import annotations

import random
from itertools import islice, pairwise

import numpy as np
import pytest

from rhizome_launcher.bench.arrivals import arrival_times


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0, 100.0])
@pytest.mark.parametrize("rate", [0.5, 20.0])
def test_gaps_have_the_wanted_mean_and_variation(rate: float, burstiness: float) -> None:
    times = list(islice(arrival_times(rate, burstiness, random.Random(1)), 20_001))
    gaps = np.diff(times)
    assert times[0] == 0
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(1 / rate, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)


def test_a_poisson_process_forgets_how_long_it_waited() -> None:
    """The share of gaps longer than their mean is 1/e, and of those again 1/e last another mean."""
    gaps = np.diff(list(islice(arrival_times(10.0, 1.0, random.Random(2)), 40_001)))
    assert (gaps > 0.1).mean() == pytest.approx(np.exp(-1), abs=0.01)
    assert (gaps > 0.2).sum() / (gaps > 0.1).sum() == pytest.approx(np.exp(-1), abs=0.02)


def test_a_seed_repeats_the_arrivals() -> None:
    first, again, other = (list(islice(arrival_times(2.0, 1.0, random.Random(s)), 50)) for s in (3, 3, 4))
    assert first == again != other
    assert all(earlier <= later for earlier, later in pairwise(first))


@pytest.mark.parametrize(("rate", "burstiness"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_numbers_that_make_no_process_are_refused(rate: float, burstiness: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        next(arrival_times(rate, burstiness, random.Random(0)))
