"""Random numbers are a function of (seed, position, token) and look random."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rhizome_engine.sampling.counter_rng import exponentials, keys
from rhizome_engine.sampling.draw import race

MASK = 2**64 - 1
int64 = st.integers(-(2**63), 2**63 - 1)


def keys_of(seeds, positions):
    """The keys as unsigned NumPy integers, for integers of any size."""
    bits = [np.array([n & MASK for n in numbers], np.uint64).view(np.int64) for numbers in (seeds, positions)]
    return keys(*map(torch.from_numpy, bits)).numpy().view(np.uint64)


def times_of(seeds, positions, tokens):
    """Exponential numbers, one per triple."""
    row_keys = torch.from_numpy(keys_of(seeds, positions).view(np.int64))[:, None]
    return exponentials(row_keys, torch.tensor(tokens)[:, None])[:, 0].numpy()


def splitmix64(state):
    """The published algorithm in plain integers: advance by the golden gamma, then mix."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    bits = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)


def in_unsigned_numpy(seeds, positions):
    """The same with unsigned arrays."""

    def mix(bits):
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))

    gamma = np.uint64(0x9E3779B97F4A7C15)
    return mix(mix(seeds + gamma) + (positions + np.uint64(1)) * gamma)


@given(int64, int64, st.integers(0, 2**31))
def test_keys_and_times_are_splitmix64_advanced_to_position_and_token(seed, position, token):
    start = splitmix64(seed & MASK)
    key = splitmix64((start + position * 0x9E3779B97F4A7C15) & MASK)
    assert keys_of([seed], [position])[0] == key
    uniform = np.float32((splitmix64((key + token * 0x9E3779B97F4A7C15) & MASK) >> 11) / 2**53)
    assert np.isclose(times_of([seed], [position], [token])[0], -np.log1p(-np.float64(uniform)), rtol=1e-4)


def test_signed_tensors_give_the_bits_of_unsigned_arrays():
    rng = np.random.default_rng(0)
    seeds, positions = rng.integers(0, 2**64, (2, 10_000), dtype=np.uint64)
    assert np.array_equal(keys_of(seeds.tolist(), positions.tolist()), in_unsigned_numpy(seeds, positions))


def test_numbers_do_not_depend_on_their_place_in_the_batch():
    triples = [3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [7, 7, 8, 8, 0]
    together = times_of(*triples).tolist()
    assert together == [times_of([s], [p], [t])[0] for s, p, t in zip(*triples, strict=True)]
    assert len(set(together)) == 5


@pytest.mark.parametrize("varying", [0, 1, 2])
def test_times_are_exponential_along_seeds_positions_and_tokens(varying):
    count = 100_000
    triple = [[7] * count for _ in range(3)]
    triple[varying] = list(range(count))
    uniform = -np.expm1(-times_of(*triple).astype(np.float64))
    assert uniform.min() >= 0.0 and uniform.max() <= 1.0
    counts = np.histogram(uniform, bins=100, range=(0, 1))[0]
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert 50 < chi_square < 160  # 99 degrees of freedom
    assert abs(np.corrcoef(uniform[:-1], uniform[1:])[0, 1]) < 0.02
    assert 1e-6 < np.sort(uniform)[5] < 3e-4  # the smallest, which win races, are fine-grained


def before_mixing(bits):
    """What SplitMix64's finaliser turns into these bits."""

    def unshift(value, count):
        found = value
        for _ in range(64 // count):
            found = value ^ (found >> count)
        return found

    bits = unshift(bits, 31) * pow(0x94D049BB133111EB, -1, 2**64) & MASK
    bits = unshift(bits, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK
    return unshift(bits, 30)


@pytest.mark.parametrize("bits", [0, MASK])
def test_a_token_that_is_alone_wins_with_the_first_and_with_the_last_number(bits):
    token = 2
    key = (before_mixing(bits) - (token + 1) * 0x9E3779B97F4A7C15) & MASK
    row_key = torch.from_numpy(np.array([[key]], np.uint64).view(np.int64))
    time = exponentials(row_key, torch.arange(4))[0, token]
    assert time == 0 if bits == 0 else 16 < time < 17
    drawn = race(torch.tensor([[0.0, 0.0, 1.0, 0.0]]), row_key)
    assert drawn.tokens.tolist() == [token] and drawn.valid.tolist() == [True]
