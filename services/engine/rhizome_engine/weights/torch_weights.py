"""Matrices as PyTorch tensors, row by row as in the checkpoint: the reference layouts, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rhizome_engine.weights.base import QuantisedRows
from rhizome_engine.weights.format import Dense, Fp8, Grouped, Int8, WeightFormat
from rhizome_engine.weights.rounding import (
    quantise_rows_fp8,
    quantise_rows_grouped,
    quantise_rows_int8,
    round_to_fp8,
    round_to_int8,
)

_FEWEST_ROWS = 32
"""CUDA multiplies no fewer than 17 rows of int8."""


class TorchWeight:
    """What all of them share; see `Weight`."""

    def __init__(self, weight_format: WeightFormat, out_features: int, in_features: int) -> None:
        self.format = weight_format
        self.out_features = out_features
        self.in_features = in_features
        self.num_bytes = 0

    def product(self, x: Tensor) -> Tensor:
        """Return `x @ weight.T` in the dtype of x, [n, out_features]."""
        raise NotImplementedError

    def rows(self, row_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return rows as [n, in_features] of `dtype`."""
        raise NotImplementedError

    def fill(self, start: int, rows: Tensor) -> None:
        """See `Weight.fill`."""
        raise NotImplementedError

    def fill_quantised(self, start: int, rows: QuantisedRows) -> None:
        """See `Weight.fill_quantised`."""
        raise TypeError(f"a {self.format} matrix takes no integers")

    def to_dense(self) -> Tensor:
        """See `Weight.to_dense`."""
        every = torch.arange(self.out_features)
        return self.rows(every, torch.float32)


class TorchDense(TorchWeight):
    """Floating point."""

    def __init__(
        self, weight_format: Dense, out_features: int, in_features: int, device: torch.device
    ) -> None:
        super().__init__(weight_format, out_features, in_features)
        self.tensor = torch.empty(out_features, in_features, dtype=weight_format.dtype, device=device)
        self.num_bytes = self.tensor.nbytes

    def product(self, x: Tensor) -> Tensor:
        """See `TorchWeight.product`."""
        return F.linear(x, self.tensor)

    def rows(self, row_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """See `TorchWeight.rows`."""
        return F.embedding(row_ids.to(self.tensor.device), self.tensor).to(dtype)

    def fill(self, start: int, rows: Tensor) -> None:
        """See `Weight.fill`."""
        self.tensor[start : start + len(rows)].copy_(rows)


class TorchInt8(TorchWeight):
    """int8 with one scale per row; activations are quantised per token, products are exact in int32."""

    def __init__(
        self, weight_format: Int8, out_features: int, in_features: int, device: torch.device
    ) -> None:
        super().__init__(weight_format, out_features, in_features)
        self.q = torch.empty(out_features, in_features, dtype=torch.int8, device=device)
        self.scales = torch.empty(out_features, dtype=torch.float32, device=device)
        self.num_bytes = self.q.nbytes + self.scales.nbytes

    def product(self, x: Tensor) -> Tensor:
        """See `TorchWeight.product`."""
        q, scales = round_to_int8(x.float())
        if x.is_cuda and len(x) < _FEWEST_ROWS:
            q = F.pad(q, (0, 0, 0, _FEWEST_ROWS - len(x)))
        sums = torch._int_mm(q, self.q.t())[: len(x)]
        return (sums.float() * scales * self.scales).to(x.dtype)

    def rows(self, row_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """See `TorchWeight.rows`."""
        ids = row_ids.to(self.q.device)
        return (self.q[ids].float() * self.scales[ids, None]).to(dtype)

    def fill(self, start: int, rows: Tensor) -> None:
        """See `Weight.fill`."""
        self.fill_quantised(start, quantise_rows_int8(rows.float()))

    def fill_quantised(self, start: int, rows: QuantisedRows) -> None:
        """See `Weight.fill_quantised`."""
        span = slice(start, start + len(rows.q))
        self.q[span] = rows.q.to(self.q.device)
        self.scales[span] = rows.scales[:, 0].to(self.q.device)


class TorchFp8(TorchWeight):
    """e4m3 with one scale per row; activations are rounded per token, products are summed in float32.

    Products of two e4m3 values are exact in float32, so that only the sums are rounded.
    """

    def __init__(self, weight_format: Fp8, out_features: int, in_features: int, device: torch.device) -> None:
        super().__init__(weight_format, out_features, in_features)
        self.q = torch.empty(out_features, in_features, dtype=torch.float8_e4m3fn, device=device)
        self.scales = torch.empty(out_features, dtype=torch.float32, device=device)
        self.num_bytes = self.q.nbytes + self.scales.nbytes

    def product(self, x: Tensor) -> Tensor:
        """See `TorchWeight.product`."""
        q, scales = round_to_fp8(x.float())
        return (F.linear(q.float(), self.q.float()) * scales * self.scales).to(x.dtype)

    def rows(self, row_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """See `TorchWeight.rows`."""
        ids = row_ids.to(self.q.device)
        q = self.q.view(torch.uint8)[ids].view(self.q.dtype)  # bytes: not all devices index e4m3
        return (q.float() * self.scales[ids, None]).to(dtype)

    def fill(self, start: int, rows: Tensor) -> None:
        """See `Weight.fill`."""
        self.fill_quantised(start, quantise_rows_fp8(rows.float()))

    def fill_quantised(self, start: int, rows: QuantisedRows) -> None:
        """See `Weight.fill_quantised`."""
        span = slice(start, start + len(rows.q))
        self.q[span] = rows.q.to(self.q.device)
        self.scales[span] = rows.scales[:, 0].to(self.q.device)


class TorchGrouped(TorchWeight):
    """Unsigned integers with a scale and an offset per group; two share a byte where they have four bits."""

    def __init__(
        self, weight_format: Grouped, out_features: int, in_features: int, device: torch.device
    ) -> None:
        super().__init__(weight_format, out_features, in_features)
        self.bits = weight_format.bits
        self.group_size = weight_format.group_size
        stored = in_features if self.bits == 8 else -(-in_features // 2)
        groups = in_features // self.group_size
        self.q = torch.empty(out_features, stored, dtype=torch.uint8, device=device)
        self.scales = torch.empty(out_features, groups, dtype=torch.float32, device=device)
        self.offsets = torch.empty(out_features, groups, dtype=torch.float32, device=device)
        self.num_bytes = self.q.nbytes + self.scales.nbytes + self.offsets.nbytes

    def product(self, x: Tensor) -> Tensor:
        """See `TorchWeight.product`."""
        every = torch.arange(self.out_features, device=self.q.device)
        return F.linear(x, self.rows(every, x.dtype))

    def rows(self, row_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """See `TorchWeight.rows`."""
        ids = row_ids.to(self.q.device)
        q = self.q[ids]
        if self.bits == 4:
            q = torch.stack((q & 15, q >> 4), dim=-1).flatten(1)
        grouped = q.view(len(q), -1, self.group_size).float()
        dense = grouped * self.scales[ids, :, None] + self.offsets[ids, :, None]
        return dense.flatten(1).to(dtype)

    def fill(self, start: int, rows: Tensor) -> None:
        """See `Weight.fill`."""
        self.fill_quantised(start, quantise_rows_grouped(rows.float(), self.bits, self.group_size))

    def fill_quantised(self, start: int, rows: QuantisedRows) -> None:
        """See `Weight.fill_quantised`."""
        span = slice(start, start + len(rows.q))
        q = rows.q if self.bits == 8 else rows.q[:, ::2] | (rows.q[:, 1::2] << 4)
        self.q[span] = q.to(self.q.device)
        self.scales[span] = rows.scales.to(self.q.device)
        if rows.offsets is None:
            self.offsets[span] = 0
        else:
            self.offsets[span] = rows.offsets.to(self.q.device)
