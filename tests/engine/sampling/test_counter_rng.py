"""Random numbers are a function of (seed, position) and look random."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rhizome_engine.sampling.counter_rng import uniforms

MASK = 2**64 - 1
int64 = st.integers(-(2**63), 2**63 - 1)


def numbers_of(seeds, positions):
    """The numbers as NumPy, for integers of any size."""
    bits = [np.array([n & MASK for n in numbers], np.uint64).view(np.int64) for numbers in (seeds, positions)]
    return uniforms(*map(torch.from_numpy, bits)).numpy()


def splitmix64(state):
    """The published algorithm in plain integers: advance by the golden gamma, then mix."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    bits = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)


def in_unsigned_numpy(seeds, positions):
    """The same with unsigned arrays: what the engine drew before it drew on the device."""

    def mix(bits):
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))

    gamma = np.uint64(0x9E3779B97F4A7C15)
    mixed = mix(mix(seeds + gamma) + (positions + np.uint64(1)) * gamma)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


@given(int64, int64)
def test_numbers_are_splitmix64_of_the_seed_advanced_to_the_position(seed, position):
    start = splitmix64(seed & MASK)
    expected = splitmix64((start + position * 0x9E3779B97F4A7C15) & MASK) >> 11
    assert numbers_of([seed], [position])[0] == expected / 2**53


def test_signed_tensors_give_the_bits_of_unsigned_arrays():
    rng = np.random.default_rng(0)
    seeds, positions = rng.integers(0, 2**64, (2, 10_000), dtype=np.uint64)
    assert np.array_equal(numbers_of(seeds.tolist(), positions.tolist()), in_unsigned_numpy(seeds, positions))


def test_numbers_do_not_depend_on_their_place_in_the_batch():
    seeds, positions = [3, 1, 4, 1, 5], [9, 2, 6, 5, 3]
    together = numbers_of(seeds, positions).tolist()
    assert together == [numbers_of([s], [p])[0] for s, p in zip(seeds, positions, strict=True)]
    assert len(set(together)) == 5


def test_numbers_fill_the_unit_interval_evenly_along_seeds_and_along_positions():
    for numbers in (numbers_of(range(100_000), [7] * 100_000), numbers_of([7] * 100_000, range(100_000))):
        assert numbers.min() >= 0.0 and numbers.max() < 1.0
        counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
        chi_square = ((counts - 1000) ** 2 / 1000).sum()
        assert 50 < chi_square < 160  # 99 degrees of freedom
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02
