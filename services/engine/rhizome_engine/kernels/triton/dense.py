"""Floating-point matrices on a GPU, row by row as in the checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from rhizome_engine.kernels.triton.configurations import ProductShape, configuration
from rhizome_engine.kernels.triton.embedding import gather_rows
from rhizome_engine.kernels.triton.tile_product import ROWS, tile_product
from rhizome_engine.kernels.triton.vector_product import vector_product
from rhizome_engine.kernels.triton.weight import SMALL_BATCH
from rhizome_engine.weights.base import QuantisedRows
from rhizome_engine.weights.format import Dense, WeightFormat

if TYPE_CHECKING:
    from rhizome_engine.checkpoint.model_config import Activation

assert SMALL_BATCH <= ROWS, "one tile holds a small batch"


class TritonDense:
    """See `TritonWeight`: own kernels for small batches, cuBLAS for large ones.

    Args:
        weight_format: float32, bfloat16 or float16; activations have the same type.
        out_features: rows.
        in_features: columns.
        device: where it lives.
    """

    def __init__(
        self, weight_format: Dense, out_features: int, in_features: int, device: torch.device
    ) -> None:
        self.format: WeightFormat = weight_format
        self.out_features = out_features
        self.in_features = in_features
        self.tensor = torch.empty(out_features, in_features, dtype=weight_format.dtype, device=device)
        self.num_bytes = self.tensor.nbytes
        shapes = [self._shape(one_row=False, gated=gated) for gated in (False, True)]
        parts = max(configuration(shape).split_k for shape in shapes)
        self.workspace_bytes = 0 if parts == 1 else parts * SMALL_BATCH * (out_features + 1) * 4

    def fill(self, start: int, rows: Tensor) -> None:
        """See `Weight.fill`."""
        self.tensor[start : start + len(rows)].copy_(rows)

    def fill_quantised(self, start: int, rows: QuantisedRows) -> None:
        """See `Weight.fill_quantised`."""
        raise TypeError(f"a {self.format} matrix takes no integers")

    def to_dense(self) -> Tensor:
        """See `Weight.to_dense`."""
        return self.tensor.float()

    def rows(self, row_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """See `TritonWeight.rows`."""
        return self.scaled_rows(row_ids, 1.0, dtype)

    def scaled_rows(self, row_ids: Tensor, multiplier: float, dtype: torch.dtype) -> Tensor:
        """Return rows times a number in one launch, [n, in_features] of `dtype`, newly allocated."""
        return gather_rows(self.tensor, row_ids, multiplier, dtype)

    def product(self, x: Tensor) -> Tensor:
        """See `TritonWeight.product`."""
        return F.linear(x, self.tensor)

    def add_product(self, residual: Tensor, x: Tensor, multiplier: float) -> None:
        """Add `multiplier * (x @ weight.T)` to `residual`, in place and in the one product."""
        residual.addmm_(x, self.tensor.t(), alpha=multiplier)

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
        shape = self._shape(one_row=len(x) == 1, gated=activation is not None)
        compute = vector_product if shape.one_row else tile_product
        how = configuration(shape)
        return compute(x, self.tensor, gain, eps, bias, activation, residual, multiplier, how)

    def _shape(self, *, one_row: bool, gated: bool) -> ProductShape:
        outputs = self.out_features // (1 + gated)
        return ProductShape(one_row, outputs, self.in_features, self.tensor.itemsize, gated)
