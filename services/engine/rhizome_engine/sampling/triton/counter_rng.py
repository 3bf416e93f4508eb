"""The numbers of `sampling.counter_rng`: the same bits, and the same times up to rounding."""

from __future__ import annotations

import triton
import triton.language as tl

from rhizome_engine.sampling.counter_rng import TO_UNIFORM as _TO_UNIFORM

_GOLDEN_GAMMA: tl.constexpr = tl.constexpr(0x9E3779B97F4A7C15)
_MULTIPLIER_1: tl.constexpr = tl.constexpr(0xBF58476D1CE4E5B9)
_MULTIPLIER_2: tl.constexpr = tl.constexpr(0x94D049BB133111EB)
_SCALE: tl.constexpr = tl.constexpr(_TO_UNIFORM)


@triton.jit
def _mix(bits):
    """SplitMix64's finaliser, of uint64."""
    bits = (bits ^ (bits >> 30)) * _MULTIPLIER_1
    bits = (bits ^ (bits >> 27)) * _MULTIPLIER_2
    return bits ^ (bits >> 31)


@triton.jit
def row_key(seed, position):
    """Return a row's 64 random bits, uint64, from its seed's bits and the position, both int64."""
    scattered = _mix(seed.to(tl.uint64) + _GOLDEN_GAMMA)
    return _mix(scattered + (position + 1).to(tl.uint64) * _GOLDEN_GAMMA)


@triton.jit
def token_bits(key, tokens):
    """Return 64 random bits per token, uint64; tokens are int32."""
    return _mix((tokens + 1).to(tl.uint64) * _GOLDEN_GAMMA + key)


@triton.jit
def exponentials(key, tokens):
    """Return each token's time, float32, exponentially distributed with mean 1.

    That is -log(1 - u), which loses digits where u is small, and those times win; Triton has no log1p that
    the interpreter knows. What 1 - u lost to rounding shows, for 1 - (1 - u) is exact, and near 1 the
    logarithm is so straight that their ratio makes good for it (Kahan).
    """
    uniform = (token_bits(key, tokens) >> 11).to(tl.float32) * _SCALE
    rest = 1.0 - uniform
    lost = tl.where(rest < 1.0, uniform / tl.maximum(1.0 - rest, _SCALE), 1.0)
    return tl.where(rest < 1.0, -tl.log(rest) * lost, uniform)
