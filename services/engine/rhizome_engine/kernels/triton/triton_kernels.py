"""The operations of `Kernels` on a GPU: small batches in one launch each, large ones by the vendor's library.

Up to `SMALL_BATCH` rows an operation is bound by reading its matrix, and what stands around the product costs
a launch each or nothing: norm, bias, activation and residual are computed inside it. Beyond that the
product is bound by arithmetic, and norm and activation are a kernel each before and after it.

Every result is newly allocated; in a recorded step it lies in the recording's pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from rhizome_engine.kernels.triton.dense import TritonDense
from rhizome_engine.kernels.triton.gating import gate
from rhizome_engine.kernels.triton.norms import add_rms_norm, rms_norm
from rhizome_engine.kernels.triton.weight import SMALL_BATCH, TritonWeight
from rhizome_engine.layers.linear import Linear
from rhizome_engine.layers.rms_norm import RMSNorm
from rhizome_engine.weights.base import Weight
from rhizome_engine.weights.format import Dense, WeightFormat

if TYPE_CHECKING:
    from rhizome_engine.checkpoint.model_config import Activation


class TritonKernels:
    """See `Kernels`.

    Args:
        device: where weights and activations live; kernels are launched on torch's current device, which must
            be this one. On "meta" weights have their sizes and no contents.
        activation_dtype: of activations; dense weights must have the same.
    """

    name = "triton"

    def __init__(self, device: torch.device, activation_dtype: torch.dtype) -> None:
        self.device = device
        self.activation_dtype = activation_dtype

    def new_weight(self, weight_format: WeightFormat, out_features: int, in_features: int) -> Weight:
        """See `Kernels.new_weight`.

        Raises:
            ValueError: dense in another dtype than the activations', or a format that has no kernel.
        """
        if isinstance(weight_format, Dense):
            if weight_format.dtype != self.activation_dtype:
                raise ValueError(f"triton kernels compute in {self.activation_dtype}, not {weight_format}")
            return TritonDense(weight_format, out_features, in_features, self.device)
        from rhizome_engine.kernels.triton.quantised import new_quantised_weight

        made = new_quantised_weight(
            weight_format, out_features, in_features, self.device, self.activation_dtype
        )
        return cast(Weight, made)  # their `format` is one of the formats

    def embed(self, weight: Weight, token_ids: Tensor, multiplier: float) -> Tensor:
        """See `Kernels.embed`."""
        if isinstance(weight, TritonDense):
            return weight.scaled_rows(token_ids, multiplier, self.activation_dtype)
        rows = _triton_weight(weight).rows(token_ids, self.activation_dtype)
        return rows if multiplier == 1 else rows.mul_(multiplier)

    def linear(self, x: Tensor, linear: Linear, norm: RMSNorm | None = None) -> Tensor:
        """See `Kernels.linear`."""
        weight = _triton_weight(linear.weight)
        if 0 < len(x) <= SMALL_BATCH:
            gain, eps = (None, 0.0) if norm is None else (norm.gain, norm.eps)
            return weight.small_product(x.contiguous(), gain=gain, eps=eps, bias=linear.bias)
        product = weight.product(x if norm is None else rms_norm(x, norm.gain, norm.eps))
        return product if linear.bias is None else product.add_(linear.bias)

    def gated_linear(self, x: Tensor, linear: Linear, activation: Activation, norm: RMSNorm | None) -> Tensor:
        """See `Kernels.gated_linear`."""
        if 0 < len(x) <= SMALL_BATCH:
            gain, eps = (None, 0.0) if norm is None else (norm.gain, norm.eps)
            return _triton_weight(linear.weight).small_product(
                x.contiguous(), gain=gain, eps=eps, bias=linear.bias, activation=activation
            )
        return gate(self.linear(x, linear, norm), activation)

    def add_linear(self, residual: Tensor, x: Tensor, linear: Linear, multiplier: float = 1.0) -> None:
        """See `Kernels.add_linear`."""
        weight = _triton_weight(linear.weight)
        if 0 < len(x) <= SMALL_BATCH:
            assert residual.is_contiguous(), "written in place"
            weight.small_product(x.contiguous(), bias=linear.bias, residual=residual, multiplier=multiplier)
            return
        if isinstance(weight, TritonDense):
            weight.add_product(residual, x, multiplier)
        else:
            residual.add_(weight.product(x), alpha=multiplier)
        if linear.bias is not None:
            residual.add_(linear.bias, alpha=multiplier)

    def add_norm(self, residual: Tensor, x: Tensor, norm: RMSNorm, multiplier: float = 1.0) -> None:
        """See `Kernels.add_norm`."""
        add_rms_norm(residual, x, norm.gain, norm.eps, multiplier)


def _triton_weight(weight: Weight) -> TritonWeight:
    assert hasattr(weight, "small_product"), "made by other kernels"
    return cast(TritonWeight, weight)
