"""Random numbers that depend only on (seed, position), not on what else is in the batch.

A counter replaces a generator's state: the n-th token of a request draws the same number whether it is
computed alone, in a batch, after a preemption or on another engine, on a CPU or a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_UINT64_MASK = 2**64 - 1
_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """Return numbers in [0, 1) with 53 random bits, one per (seed, position).

    Two rounds of SplitMix64's finaliser (Steele, Lea, Flood 2014): one scatters the seed, so that
    neighbouring seeds share nothing, one the position.

    Args:
        seeds: any integers; only their low 64 bits count.
        positions: any integers, as `seeds`.
    """
    seed_bits = np.array([seed & _UINT64_MASK for seed in seeds], dtype=np.uint64)
    position_bits = np.array([position & _UINT64_MASK for position in positions], dtype=np.uint64)
    mixed = _mix(_mix(seed_bits + _GOLDEN_GAMMA) + (position_bits + np.uint64(1)) * _GOLDEN_GAMMA)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
