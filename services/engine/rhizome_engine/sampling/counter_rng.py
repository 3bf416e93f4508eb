"""Random numbers that depend only on (seed, position, token), not on what else is in the batch.

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
TO_UNIFORM = 2.0**-53 * (1.0 - 2.0**-24)
"""From 53 bits to a number below 1. Rounded to float32 they may be 2**53; a hair less than 2**-53 keeps out
1, whose time would be infinite: a token that is alone in its race would not win it."""
_IN_CACHE = 2**18
"""Numbers that are made at once on a CPU: temporaries of two megabytes stay near the core."""


def keys(seeds: Tensor, positions: Tensor) -> Tensor:
    """Return int64 of 64 random bits, one per (seed, position).

    Two rounds of SplitMix64's finaliser (Steele, Lea, Flood 2014): one scatters the seed, so that
    neighbouring seeds share nothing, one the position. Integer arithmetic only, so every device gives the
    same bits.

    Args:
        seeds: int64 of any shape; bits of an unsigned seed.
        positions: int64, as `seeds`.
    """
    scattered = _mix_in_place(seeds + _GOLDEN_GAMMA)
    return _mix_in_place(scattered + (positions + 1) * _GOLDEN_GAMMA)


def exponentials(row_keys: Tensor, token_ids: Tensor) -> Tensor:
    """Return float32 numbers, exponentially distributed with mean 1, one per key and token.

    A third round of the finaliser, over the token's id. 53 bits keep small numbers as precise as large ones:
    it is the smallest that matter.

    Args:
        row_keys: [n, 1] of `keys`.
        token_ids: [n, m] or [m] int64.
    """
    steps = (token_ids + 1) * _GOLDEN_GAMMA
    if row_keys.device.type != "cpu":
        return _to_exponential(row_keys + steps)
    rows = max(_IN_CACHE // steps.shape[-1], 1)
    steps = steps.expand(len(row_keys), -1)
    starts = range(0, len(row_keys), rows)
    return torch.cat([_to_exponential(row_keys[i : i + rows] + steps[i : i + rows]) for i in starts])


def _to_exponential(bits: Tensor) -> Tensor:
    """Mix and convert, in place: a pass over fresh memory costs more than the arithmetic."""
    _shift_right(_mix_in_place(bits), 11, out=bits)
    return bits.to(torch.float32).mul_(TO_UNIFORM).neg_().log1p_().neg_()


def _mix_in_place(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser."""
    shifted = torch.empty_like(bits)
    bits.bitwise_xor_(_shift_right(bits, 30, out=shifted)).mul_(_MULTIPLIER_1)
    bits.bitwise_xor_(_shift_right(bits, 27, out=shifted)).mul_(_MULTIPLIER_2)
    return bits.bitwise_xor_(_shift_right(bits, 31, out=shifted))


def _shift_right(bits: Tensor, count: int, out: Tensor) -> Tensor:
    """Shift zeros in from the left, where `>>` would repeat the sign."""
    torch.bitwise_right_shift(bits, count, out=out)
    return out.bitwise_and_(_signed(2 ** (64 - count) - 1))
