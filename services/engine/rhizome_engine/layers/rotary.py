"""Rotary position embeddings with the scalings of Llama checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rhizome_engine.checkpoint import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Return radians per position, [head_dim / 2] float32.

    "llama3" divides long wavelengths by `factor`, keeps short ones, and blends linearly in between
    (Llama 3.1's `apply_scaling`).
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / rope.theta**exponents
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        wavelengths = 2 * math.pi / frequencies
        span = rope.high_freq_factor - rope.low_freq_factor
        kept = (rope.original_max_position / wavelengths - rope.low_freq_factor) / span
        kept = kept.clamp(0.0, 1.0)
        return kept * frequencies + (1.0 - kept) * frequencies / rope.factor
    return frequencies


def rotary_table(frequencies: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the angles, each [num_tokens, 1, head_dim / 2] float32.

    Computed once per step and shared by all layers: cheaper than a table for the longest context.
    """
    angles = (positions.to(torch.float32)[:, None] * frequencies)[:, None, :]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + head_dim / 2]) by its token's angle, in float32.

    Args:
        x: [num_tokens, num_heads, head_dim].
        cos: from `rotary_table`.
        sin: from `rotary_table`.
    """
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
