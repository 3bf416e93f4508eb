"""A step's rotary tables in one launch, where PyTorch takes four or six."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rhizome_engine.layers.rotary import Rope

_TOKENS = 8


@triton.jit(do_not_specialize=["num_tokens"])
def attention_turns(
    positions,
    frequencies,
    cos,
    sin,
    num_tokens,
    factor,
    HALF: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Write cosines and sines of TOKENS tokens, [TOKENS, HALF], times what attention is scaled by."""
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    pairs = tl.arange(0, PADDED_HALF)
    position = tl.load(positions + tokens, mask=tokens < num_tokens, other=0).to(tl.float32)
    frequency = tl.load(frequencies + pairs, mask=pairs < HALF, other=0.0)
    angles = position[:, None] * frequency[None, :]
    place = tokens[:, None] * HALF + pairs[None, :]
    there = (tokens < num_tokens)[:, None] & (pairs < HALF)[None, :]
    tl.store(cos + place, tl.cos(angles) * factor, mask=there)
    tl.store(sin + place, tl.sin(angles) * factor, mask=there)


def turns(rope: Rope, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `Rope.table` returns: cosines and sines, each [num_tokens, rotary_dim / 2] float32."""
    frequencies = rope.frequencies
    if frequencies is None:
        return rope.table(positions)
    half, num_tokens = len(frequencies), len(positions)
    cos, sin = torch.empty(2, num_tokens, half, dtype=torch.float32, device=positions.device).unbind(0)
    attention_turns[(triton.cdiv(num_tokens, _TOKENS),)](
        positions,
        frequencies,
        cos,
        sin,
        num_tokens,
        rope.config.attention_factor,
        HALF=half,
        PADDED_HALF=triton.next_power_of_2(half),
        TOKENS=_TOKENS,
        num_warps=4,
    )
    return cos, sin
