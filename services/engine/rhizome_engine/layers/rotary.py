"""Rotary position embeddings and their scalings.

A key in the KV pool may serve requests of any length, so its angle depends on its position and on the model,
never on how long a request has become. Two scalings were written with the latter in mind; docs/models.md says
what is computed here instead and where transformers computes the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rhizome_engine.checkpoint.rope_config import RopeConfig


class Rope:
    """Turns positions into angles.

    Args:
        config: base and scaling.
        head_dim: width of a head.
        device: where positions will be.
        max_context: the longest context that is served; "longrope" chooses by it which factors to take.

    Attributes:
        rotary_dim: how much of each head is rotated, from its beginning; even.
    """

    def __init__(self, config: RopeConfig, head_dim: int, device: torch.device, max_context: int = 0) -> None:
        self.config = config
        self.rotary_dim = config.rotary_dim(head_dim)
        self._frequencies = inverse_frequencies(config, self.rotary_dim, max_context).to(device)

    @property
    def frequencies(self) -> Tensor | None:
        """Radians per position, [rotary_dim / 2] float32; None where they change with the position."""
        return None if self.config.kind == "dynamic" else self._frequencies

    def table(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines, each [num_tokens, rotary_dim / 2] float32.

        Computed once per step and shared by all layers: cheaper than a table for the longest context.
        """
        frequencies = self._frequencies
        if self.config.kind == "dynamic":
            frequencies = self._slowed(positions)
        angles = positions.to(torch.float32)[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        if self.config.attention_factor != 1:
            cos, sin = cos * self.config.attention_factor, sin * self.config.attention_factor
        return cos, sin

    def _slowed(self, positions: Tensor) -> Tensor:
        """Return frequencies [num_tokens, rotary_dim / 2] of the "dynamic" kind.

        The base grows with the context, here with the context that ends at the token itself: theta becomes
        theta * growth ** (d / (d - 2)), so that frequency theta ** (-2i / d) is divided by
        growth ** (2i / (d - 2)).
        """
        length = (positions + 1).clamp(min=self.config.original_max_position).to(torch.float32)
        factor = self.config.factor
        growth = factor * length / self.config.original_max_position - (factor - 1)
        exponents = torch.arange(0, self.rotary_dim, 2, device=positions.device) / max(self.rotary_dim - 2, 1)
        return self._frequencies / growth[:, None] ** exponents


def inverse_frequencies(rope: RopeConfig, rotary_dim: int, max_context: int) -> Tensor:
    """Return radians per position, [rotary_dim / 2] float32; for "dynamic" those of short contexts."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    frequencies = 1.0 / rope.theta**exponents
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        return _blend(frequencies, rope.factor, _llama3_kept(rope, frequencies))
    if rope.kind == "yarn":
        return _blend(frequencies, rope.factor, _yarn_kept(rope, rotary_dim))
    if rope.kind == "longrope":
        stretched = max_context > rope.original_max_position
        return frequencies / torch.tensor(rope.long_factors if stretched else rope.short_factors)
    return frequencies


def _blend(frequencies: Tensor, factor: float, kept: Tensor) -> Tensor:
    """Divide by `factor` where `kept` is 0, not at all where it is 1, and mix linearly in between."""
    return kept * frequencies + (1.0 - kept) * frequencies / factor


def _llama3_kept(rope: RopeConfig, frequencies: Tensor) -> Tensor:
    """Keep short wavelengths; which are short is said in wavelengths per original context (Llama 3.1)."""
    wavelengths = 2 * math.pi / frequencies
    span = rope.high_freq_factor - rope.low_freq_factor
    return ((rope.original_max_position / wavelengths - rope.low_freq_factor) / span).clamp(0.0, 1.0)


def _yarn_kept(rope: RopeConfig, rotary_dim: int) -> Tensor:
    """Keep the first pairs; which those are is said in turns per original context (arXiv 2309.00071)."""

    def pair_that_turns(times: float) -> float:
        # Pair i turns original_max_position / (2 pi theta ** (2i / d)) times; solved for i.
        turns_of_first = rope.original_max_position / (2 * math.pi)
        return rotary_dim * math.log(turns_of_first / times) / (2 * math.log(rope.theta))

    first, last = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    pairs = torch.arange(rotary_dim // 2, dtype=torch.float32)
    return 1.0 - ((pairs - first) / (last - first or 0.001)).clamp(0.0, 1.0)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + rotary_dim / 2]) by its token's angle, in float32.

    Args:
        x: [num_tokens, num_heads, head_dim].
        cos: [num_tokens, rotary_dim / 2].
        sin: like cos.
    """
    rotary_dim = 2 * cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    first, second = x[..., :rotary_dim].float().chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    rest = () if rotary_dim == x.shape[-1] else (x[..., rotary_dim:].float(),)
    return torch.cat((*turned, *rest), dim=-1).to(x.dtype)
