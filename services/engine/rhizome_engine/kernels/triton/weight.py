"""The protocol of matrices that `TritonKernels` computes with: small batches fused, large ones by cuBLAS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from rhizome_engine.weights.base import QuantisedRows
from rhizome_engine.weights.format import WeightFormat

if TYPE_CHECKING:
    from rhizome_engine.checkpoint.model_config import Activation

SMALL_BATCH = 16
"""Rows of x up to which a product is bound by reading the matrix: one tile of the tensor cores."""


class TritonWeight(Protocol):
    """A matrix and its products on a GPU.

    Attributes:
        format: how it is kept.
        out_features: rows.
        in_features: columns.
        num_bytes: memory it takes, scales included.
        workspace_bytes: the most that one product takes beside x and its result.
    """

    format: WeightFormat
    out_features: int
    in_features: int
    num_bytes: int
    workspace_bytes: int

    def fill(self, start: int, rows: Tensor) -> None:
        """See `Weight.fill`."""
        ...

    def fill_quantised(self, start: int, rows: QuantisedRows) -> None:
        """See `Weight.fill_quantised`."""
        ...

    def to_dense(self) -> Tensor:
        """See `Weight.to_dense`."""
        ...

    def rows(self, row_ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return rows as [n, in_features] of `dtype`, newly allocated."""
        ...

    def product(self, x: Tensor) -> Tensor:
        """Return `x @ weight.T` in the dtype of x, [n, out_features], for any n; newly allocated."""
        ...

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
        """Compute a whole operation of `Kernels` for at most `SMALL_BATCH` rows.

        y = norm(x) @ weight.T + bias; gated: activation(first half of y) * second half; then
        residual += multiplier * y, in place.

        Args:
            x: [n, in_features], contiguous; 1 <= n <= SMALL_BATCH.
            gain: [in_features] float32 of an RMS norm of x; None for x as it is.
            eps: of that norm.
            bias: [out_features] in the dtype of x, or None.
            activation: of the gate, where the output is gate and up side by side; None: not gated.
            residual: [n, out_features] contiguous, in the dtype of x; None: the result is stored.
            multiplier: of what is added to the residual.

        Returns:
            `residual`, or else [n, out_features] ([n, out_features / 2] where gated), newly allocated
        """
        ...
