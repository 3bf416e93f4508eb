"""Random numbers are a function of (seed, position) and look random."""

from __future__ import annotations

import numpy as np

from rhizome_engine.sampling.counter_rng import uniforms


def splitmix64(state):
    """The published algorithm in plain integers: advance by the golden gamma, then mix."""
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    bits = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & mask
    return bits ^ (bits >> 31)


def test_numbers_are_splitmix64_of_the_seed_advanced_to_the_position():
    for seed, position in [(0, 0), (1, 0), (0, 1), (2**63 + 5, 1000), (-1, 7)]:
        start = splitmix64(seed % 2**64)
        expected = splitmix64((start + position * 0x9E3779B97F4A7C15) % 2**64) >> 11
        assert uniforms([seed], [position])[0] == expected / 2**53


def test_numbers_do_not_depend_on_their_place_in_the_batch():
    seeds, positions = [3, 1, 4, 1, 5], [9, 2, 6, 5, 3]
    together = uniforms(seeds, positions)
    assert together.tolist() == [uniforms([s], [p])[0] for s, p in zip(seeds, positions, strict=True)]
    assert len(set(together.tolist())) == 5


def test_numbers_fill_the_unit_interval_evenly_along_seeds_and_along_positions():
    for numbers in (uniforms(range(100_000), [7] * 100_000), uniforms([7] * 100_000, range(100_000))):
        assert numbers.min() >= 0.0 and numbers.max() < 1.0
        counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
        chi_square = ((counts - 1000) ** 2 / 1000).sum()
        assert 50 < chi_square < 160  # 99 degrees of freedom
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02
