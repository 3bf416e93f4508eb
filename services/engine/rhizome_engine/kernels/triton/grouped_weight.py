"""Matrices of grouped integers, 4 or 8 bits, on a GPU; activations stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rhizome_engine.kernels.triton.configurations import (
    DEPENDENT_LAUNCHES,
    MULTIPROCESSORS,
    OVERRIDES,
    Configuration,
    ProductShape,
)
from rhizome_engine.kernels.triton.dequantised_product import dequantised_product, workspace_elements
from rhizome_engine.kernels.triton.grouped_tile import MOST_ROWS, grouped_tile_product
from rhizome_engine.kernels.triton.grouped_vector import grouped_vector_product
from rhizome_engine.kernels.triton.grouped_words import GroupedParts, gather_grouped_rows, pack
from rhizome_engine.kernels.triton.weight import SMALL_BATCH
from rhizome_engine.weights.base import QuantisedRows
from rhizome_engine.weights.format import Grouped, WeightFormat
from rhizome_engine.weights.rounding import quantise_rows_grouped

if TYPE_CHECKING:
    from rhizome_engine.checkpoint.model_config import Activation


class TritonGrouped:
    """See `TritonWeight`; the layout is that of `grouped_words`.

    Scales and offsets are float16 beside 16-bit activations: a scale is off by at most 2 ** -11 of itself,
    that is 0.004 steps at the ends of 4 bits and 0.06 of 8, where rounding to integers is off by up to half a
    step. Offsets count from the middle of the range, so that symmetric checkpoints have none. A factor per
    row, a power of two, keeps both within the range of float16. Beside float32 activations they are float32.

    Args:
        weight_format: 4 or 8 bits, in groups whose integers fill 32-bit words.
        out_features: rows.
        in_features: columns, a multiple of the group.
        device: where it lives.
        activation_dtype: of x.

    Raises:
        ValueError: groups that do not fill words, or other bits.
    """

    def __init__(
        self,
        weight_format: Grouped,
        out_features: int,
        in_features: int,
        device: torch.device,
        activation_dtype: torch.dtype,
    ) -> None:
        bits, group_size = weight_format.bits, weight_format.group_size
        if bits not in (4, 8) or group_size * bits % 32 or in_features % group_size:
            raise ValueError(f"no triton kernel for {weight_format} with {in_features} inputs")
        self.format: WeightFormat = weight_format
        self.out_features = out_features
        self.in_features = in_features
        side = torch.float32 if activation_dtype == torch.float32 else torch.float16
        groups = in_features // group_size
        self.parts = GroupedParts(
            torch.empty(out_features, in_features * bits // 32, dtype=torch.int32, device=device),
            torch.empty(out_features, groups, dtype=side, device=device),
            torch.empty(out_features, groups, dtype=side, device=device),
            torch.empty(out_features, dtype=torch.float32, device=device),
            bits,
            group_size,
        )
        self.num_bytes = sum(tensor.nbytes for tensor in self.parts.tensors)
        self.workspace_bytes = activation_dtype.itemsize * workspace_elements(out_features, in_features)

    def fill(self, start: int, rows: Tensor) -> None:
        """See `Weight.fill`."""
        self.fill_quantised(start, quantise_rows_grouped(rows, self.parts.bits, self.parts.group_size))

    def fill_quantised(self, start: int, rows: QuantisedRows) -> None:
        """See `Weight.fill_quantised`."""
        parts = self.parts
        device, span = parts.words.device, slice(start, start + len(rows.q))
        parts.words[span] = pack(rows.q.to(device), parts.bits, parts.group_size)
        scales = rows.scales.to(device)
        offsets = scales * (1 << (parts.bits - 1))
        largest = offsets.abs()
        offsets = offsets + (0 if rows.offsets is None else rows.offsets.to(device))
        largest = (largest + offsets.abs()).amax(dim=1)
        exponents = torch.frexp(largest).exponent.clamp(-100, 100)
        if parts.scales.dtype == torch.float32:
            exponents = torch.zeros_like(exponents)
        factors = torch.ldexp(torch.ones_like(largest), exponents)
        parts.factors[span] = factors
        parts.scales[span] = scales / factors[:, None]
        parts.offsets[span] = offsets / factors[:, None]

    def to_dense(self) -> Tensor:
        """See `Weight.to_dense`."""
        every = torch.arange(self.out_features, device=self.parts.words.device)
        return self.rows(every, torch.float32)

    def rows(self, row_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """See `TritonWeight.rows`."""
        return gather_grouped_rows(self.parts, row_ids, dtype)

    def small_product(
        self,
        x: Tensor,
        *,
        gain: Tensor | None = None,
        eps: float = 0.0,
        bias: Tensor | None = None,
        activation: Activation | None = None,
        residual: Tensor | None = None,
        multiplier: float = 1.0,
    ) -> Tensor:
        """See `TritonWeight.small_product`."""
        gated = activation is not None
        compute = grouped_vector_product if len(x) == 1 else grouped_tile_product
        how = self._configuration(x, gated)
        return compute(x, self.parts, gain, eps, bias, activation, residual, multiplier, how)

    def product(self, x: Tensor) -> Tensor:
        """See `TritonWeight.product`."""
        if not len(x):
            return x.new_empty(0, self.out_features)
        if len(x) <= (MOST_ROWS if x.itemsize == 2 else SMALL_BATCH):
            return self.small_product(x.contiguous())
        return dequantised_product(x, self.rows, self.out_features)

    def _configuration(self, x: Tensor, gated: bool) -> Configuration:
        outputs, words = self.out_features // (1 + gated), self.parts.words.shape[1]
        shape = ProductShape(len(x) == 1, outputs, words, self.parts.words.itemsize, gated)
        if shape in OVERRIDES:
            return OVERRIDES[shape]
        if shape.one_row:
            return _vector(words, gated)
        if x.itemsize > 2:  # not for tensor cores: larger tiles would not fit into registers
            return Configuration(16, 16, num_stages=2)
        return _tile(outputs, words, gated)


def _vector(words: int, gated: bool) -> Configuration:
    """Cut for one row of x: eight pieces of 16 bytes under way in each thread, and as many threads as words.

    A warp takes 128 words of a row, 512 bytes. Where the warps take just the width of the tile, the compiler
    loads x as the threads need it; otherwise each place of x would go through shared memory.
    """
    num_warps = 1
    while num_warps < 4 and num_warps * 128 < words:
        num_warps *= 2
    return Configuration(4 if gated else 8, 128 * num_warps, num_warps, dependent_launch=DEPENDENT_LAUNCHES)


def _tile(outputs: int, words: int, gated: bool) -> Configuration:
    """Cut for tensor cores: as wide as leaves a program for each multiprocessor, 64 words at a time."""
    block_n = 16
    while block_n < (32 if gated else 64) and outputs >= 2 * block_n * MULTIPROCESSORS:
        block_n *= 2
    block_k = 16
    while block_k < min(words, 64):
        block_k *= 2
    return Configuration(block_n, block_k, num_stages=3)
