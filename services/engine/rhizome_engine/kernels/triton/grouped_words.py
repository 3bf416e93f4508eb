"""The layout of grouped integers on a GPU, and reading it: places of 32-bit words.

A word holds 8 integers of 4 bits or 4 of 8 bits, at "places" from the lowest bits up. With W words per group
(group_size * bits / 32), place i of word j of a group holds the group's column i * W + j:

    group of 32, 4 bits, W = 4     word 0: columns 0 4 8 ... 28     word 1: columns 1 5 9 ... 29     ...

So a thread that reads 4 words, 16 bytes, needs x at runs of 4 neighbours, one per place, and all 32 integers
share a scale. Words of a row lie side by side, rows follow each other.

An integer becomes a float without a conversion: its bits below the exponent of 1.0 make 1 + q / 2^bits. An
element is `factor * (scale * (q - middle) + offset)`: middle is half the range, 8 or 128; offsets are then
small, so that 16 bits hold them; `factor` is a power of two per row that brings the row's scales into the
range of float16. With scale * (q - middle) + offset = scale * 2^bits * f + (offset - 1.5 * scale * 2^bits)
one multiplication and addition dequantises f.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256
ONE = 0x3F800000
"""The bits of 1.0."""


@dataclass(frozen=True, slots=True)
class GroupedParts:
    """The tensors of a matrix.

    Attributes:
        words: [out_features, in_features * bits / 32] int32.
        scales: [out_features, groups] float16, or float32 beside float32 activations.
        offsets: the same.
        factors: [out_features] float32.
        bits: of an integer, 4 or 8.
        group_size: elements that share a scale.
    """

    words: Tensor
    scales: Tensor
    offsets: Tensor
    factors: Tensor
    bits: int
    group_size: int

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Words, scales, offsets, factors."""
        return self.words, self.scales, self.offsets, self.factors

    @property
    def words_per_group(self) -> int:
        """W of the layout."""
        return self.group_size * self.bits // 32


@triton.jit
def fraction(words, one, PLACE: tl.constexpr, BITS: tl.constexpr):
    """Return 1 + q / 2^BITS, float32, of the integers at a place of int32 words.

    `one` is `ONE`, passed to the kernel as an argument: as a constant beside the mask it would cost each
    element an instruction more, since one instruction holds one constant.
    """
    MASK: tl.constexpr = ((1 << BITS) - 1) << (23 - BITS)
    LEFT: tl.constexpr = 23 - BITS - PLACE * BITS
    moved = words << LEFT if LEFT >= 0 else words >> -LEFT
    return ((moved & MASK) | one).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["one"])
def _gather(
    words,
    scales,
    offsets,
    factors,
    row_ids,
    out,
    num_rows,
    one,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    PLACES: tl.constexpr = 32 // BITS
    W: tl.constexpr = GROUP // PLACES
    STEPS: tl.constexpr = 1 << BITS
    place = tl.program_id(0).to(tl.int64)
    each = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(row_ids + place)
    known = (row >= 0) & (row < num_rows)
    inside = each < SIZE // PLACES
    found = tl.load(words + row * (SIZE // PLACES) + each, mask=inside & known, other=0)
    group = row * (SIZE // GROUP) + each // W
    scale = tl.load(scales + group, mask=inside & known, other=0.0).to(tl.float32) * STEPS
    offset = tl.load(offsets + group, mask=inside & known, other=0.0).to(tl.float32)
    factor = tl.load(factors + row, mask=known, other=0.0)
    first = place * SIZE + (each // W) * GROUP + each % W
    for i in tl.static_range(PLACES):
        element = ((fraction(found, one, i, BITS) - 1.5) * scale + offset) * factor
        tl.store(out + first + i * W, element.to(out.dtype.element_ty), mask=inside)


def pack(q: Tensor, bits: int, group_size: int) -> Tensor:
    """Return integers [rows, in_features] uint8 as words [rows, in_features * bits / 32] int32."""
    places = 32 // bits
    by_word = q.view(len(q), -1, places, group_size // places).transpose(2, 3).contiguous()
    if bits == 4:
        by_word = by_word[..., ::2] | (by_word[..., 1::2] << 4)
    return by_word.view(torch.int32).view(len(q), -1)


def gather_grouped_rows(parts: GroupedParts, row_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Return rows as [n, in_features] of `dtype`; a row id that the matrix lacks gives zeros.

    Args:
        parts: of the matrix.
        row_ids: [n] int64.
        dtype: of the result.
    """
    words, bits = parts.words, parts.bits
    size = words.shape[1] * 32 // bits
    out = torch.empty(len(row_ids), size, dtype=dtype, device=words.device)
    if len(row_ids):
        _gather[(len(row_ids), triton.cdiv(words.shape[1], BLOCK))](
            *parts.tensors,
            row_ids.to(words.device).contiguous(),
            out,
            len(words),
            ONE,
            BITS=bits,
            GROUP=parts.group_size,
            SIZE=size,
            BLOCK=BLOCK,
            num_warps=2,
        )
    return out
