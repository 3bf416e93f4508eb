"""Normalise and rotate queries and keys, and write keys and values to their slots: one launch per layer."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rhizome_engine.attention.base import AttentionLayer

_ELEMENTS = 512
"""What a program takes on at once: some heads of one token."""


@triton.jit
def attention_store(
    qkv,
    q,
    keys,
    values,
    slot_mapping,
    cos,
    sin,
    q_gain,
    k_gain,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    HALF: tl.constexpr,
    NORM_Q: tl.constexpr,
    NORM_K: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Program (token, part) takes HEADS of the token's heads; HALF is half the rotated width, 0 for none."""
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    dims = tl.arange(0, PADDED_DIM)
    ALL_HEADS: tl.constexpr = NUM_HEADS + 2 * NUM_KV_HEADS
    is_query = heads < NUM_HEADS
    is_key = (heads >= NUM_HEADS) & (heads < NUM_HEADS + NUM_KV_HEADS)
    is_value = (heads >= NUM_HEADS + NUM_KV_HEADS) & (heads < ALL_HEADS)
    there = (heads < ALL_HEADS)[:, None] & (dims < HEAD_DIM)[None, :]
    head_start = qkv + token * (ALL_HEADS * HEAD_DIM) + heads[:, None] * HEAD_DIM
    x = tl.load(head_start + dims[None, :], mask=there, other=0.0).to(tl.float32)
    result = x

    if NORM_Q or NORM_K:
        root = tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
        in_head = dims < HEAD_DIM
        if NORM_Q:
            gain = tl.load(q_gain + dims, mask=in_head, other=0.0)
            result = tl.where(is_query[:, None], x * root * gain[None, :], result)
        if NORM_K:
            gain = tl.load(k_gain + dims, mask=in_head, other=0.0)
            result = tl.where(is_key[:, None], x * root * gain[None, :], result)

    if HALF > 0:
        # Each element meets the other of its pair, read once more (from the cache) at its own place.
        in_first = dims < HALF
        rotated = dims < 2 * HALF
        partner = tl.where(in_first, dims + HALF, dims - HALF)
        angle = tl.where(in_first, dims, dims - HALF)
        other = tl.load(head_start + partner[None, :], mask=there & rotated[None, :], other=0.0)
        other = other.to(tl.float32)
        if NORM_Q:
            gain = tl.load(q_gain + partner, mask=rotated, other=0.0)
            other = tl.where(is_query[:, None], other * root * gain[None, :], other)
        if NORM_K:
            gain = tl.load(k_gain + partner, mask=rotated, other=0.0)
            other = tl.where(is_key[:, None], other * root * gain[None, :], other)
        cosine = tl.load(cos + token * HALF + angle, mask=rotated, other=1.0)[None, :]
        sine = tl.load(sin + token * HALF + angle, mask=rotated, other=0.0)[None, :]
        sine = tl.where(in_first[None, :], -sine, sine)
        turned = result * cosine + other * sine
        result = tl.where((is_query | is_key)[:, None] & rotated[None, :], turned, result)

    q_place = q + (token * NUM_HEADS + heads[:, None]) * HEAD_DIM + dims[None, :]
    tl.store(q_place, result.to(q.dtype.element_ty), mask=there & is_query[:, None])
    slot = tl.load(slot_mapping + token).to(tl.int64)
    stored = there & (slot >= 0)
    key_place = keys + (slot * NUM_KV_HEADS + heads[:, None] - NUM_HEADS) * HEAD_DIM + dims[None, :]
    tl.store(key_place, result.to(keys.dtype.element_ty), mask=stored & is_key[:, None])
    first_value = NUM_HEADS + NUM_KV_HEADS
    value_place = values + (slot * NUM_KV_HEADS + heads[:, None] - first_value) * HEAD_DIM + dims[None, :]
    tl.store(value_place, x.to(values.dtype.element_ty), mask=stored & is_value[:, None])


def store(
    layer: AttentionLayer,
    qkv: Tensor,
    table: tuple[Tensor, Tensor] | None,
    slot_mapping: Tensor,
    keys: Tensor,
    values: Tensor,
    q: Tensor,
) -> None:
    """Do what `reference.store` does.

    Args:
        layer: of the model.
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], contiguous.
        table: cosines and sines, each [num_tokens, rotary_dim / 2] float32; None for no rotation.
        slot_mapping: [num_tokens] int64; nothing is stored of a token whose slot is negative.
        keys: [num_pages, page_size, num_kv_heads, head_dim], written.
        values: like keys.
        q: [num_tokens, num_heads, head_dim] of the pool's type, written.
    """
    padded = triton.next_power_of_2(layer.head_dim)
    all_heads = layer.num_heads + 2 * layer.num_kv_heads
    heads = max(1, min(triton.next_power_of_2(all_heads), _ELEMENTS // padded))
    cos, sin = (qkv, qkv) if table is None else table  # a kernel wants pointers, read or not
    attention_store[(len(qkv), triton.cdiv(all_heads, heads))](
        qkv,
        q,
        keys,
        values,
        slot_mapping,
        cos,
        sin,
        _pointer(layer.q_norm, qkv),
        _pointer(layer.k_norm, qkv),
        layer.norm_eps,
        NUM_HEADS=layer.num_heads,
        NUM_KV_HEADS=layer.num_kv_heads,
        HEAD_DIM=layer.head_dim,
        PADDED_DIM=padded,
        HALF=0 if table is None else cos.shape[-1],
        NORM_Q=layer.q_norm is not None,
        NORM_K=layer.k_norm is not None,
        HEADS=heads,
        num_warps=4,
    )


def _pointer(gain: Tensor | None, instead: Tensor) -> Tensor:
    return instead if gain is None else gain
