"""Random numbers that depend only on (seed, position), not on what else is in the batch.

A counter replaces a generator's state: the n-th token of a request draws the same number whether it is
computed alone, in a batch, after a preemption or on another engine, on a CPU or a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(bits: int) -> int:
    """The int64 with the same 64 bits: PyTorch computes with signed integers, which wrap alike."""
    return bits - 2**64 if bits >= 2**63 else bits


_GOLDEN_GAMMA = _signed(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _signed(0x94D049BB133111EB)


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """Return float64 numbers in [0, 1) with 53 random bits, one per (seed, position).

    Two rounds of SplitMix64's finaliser (Steele, Lea, Flood 2014): one scatters the seed, so that
    neighbouring seeds share nothing, one the position. Integer arithmetic only, so every device gives the
    same bits.

    Args:
        seeds: int64 of any shape; bits of an unsigned seed.
        positions: int64, as `seeds`.
    """
    mixed = _mix(_mix(seeds + _GOLDEN_GAMMA) + (positions + 1) * _GOLDEN_GAMMA)
    return _shift_right(mixed, 11).to(torch.float64).mul_(2.0**-53)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * _MULTIPLIER_1
    bits = (bits ^ _shift_right(bits, 27)) * _MULTIPLIER_2
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Shift zeros in from the left, where `>>` would repeat the sign."""
    return torch.bitwise_and(bits >> count, _signed(2 ** (64 - count) - 1))
