"""The operations of `Kernels` in plain PyTorch: on every device, and what the others are held to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rhizome_engine.checkpoint.model_config import Activation
from rhizome_engine.layers.linear import Linear
from rhizome_engine.layers.rms_norm import RMSNorm, normalise
from rhizome_engine.weights.base import Weight
from rhizome_engine.weights.format import Dense, Fp8, Grouped, WeightFormat
from rhizome_engine.weights.torch_weights import TorchDense, TorchFp8, TorchGrouped, TorchInt8, TorchWeight


class TorchKernels:
    """See `Kernels`; every result is newly allocated.

    Args:
        device: where weights and activations live.
        activation_dtype: of activations; dense weights must have the same.
    """

    name = "torch"

    def __init__(self, device: torch.device, activation_dtype: torch.dtype) -> None:
        self.device = device
        self.activation_dtype = activation_dtype

    def new_weight(self, weight_format: WeightFormat, out_features: int, in_features: int) -> TorchWeight:
        """See `Kernels.new_weight`.

        Raises:
            ValueError: dense in another dtype than the activations'.
        """
        if isinstance(weight_format, Dense):
            if weight_format.dtype != self.activation_dtype:
                raise ValueError(f"torch kernels compute in {self.activation_dtype}, not {weight_format}")
            return TorchDense(weight_format, out_features, in_features, self.device)
        if isinstance(weight_format, Grouped):
            return TorchGrouped(weight_format, out_features, in_features, self.device)
        if isinstance(weight_format, Fp8):
            return TorchFp8(weight_format, out_features, in_features, self.device)
        return TorchInt8(weight_format, out_features, in_features, self.device)

    def embed(self, weight: Weight, token_ids: Tensor, multiplier: float) -> Tensor:
        """See `Kernels.embed`."""
        rows = _torch_weight(weight).rows(token_ids, self.activation_dtype)
        return rows if multiplier == 1 else rows * multiplier

    def linear(self, x: Tensor, linear: Linear, norm: RMSNorm | None = None) -> Tensor:
        """See `Kernels.linear`."""
        product = _torch_weight(linear.weight).product(
            x if norm is None else normalise(x, norm.gain, norm.eps)
        )
        return product if linear.bias is None else product + linear.bias

    def gated_linear(self, x: Tensor, linear: Linear, activation: Activation, norm: RMSNorm | None) -> Tensor:
        """See `Kernels.gated_linear`."""
        gate, up = self.linear(x, linear, norm).chunk(2, dim=-1)
        gate = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
        return gate * up

    def add_linear(self, residual: Tensor, x: Tensor, linear: Linear, multiplier: float = 1.0) -> None:
        """See `Kernels.add_linear`."""
        residual.add_(self.linear(x, linear), alpha=multiplier)

    def add_norm(self, residual: Tensor, x: Tensor, norm: RMSNorm, multiplier: float = 1.0) -> None:
        """See `Kernels.add_norm`."""
        residual.add_(normalise(x, norm.gain, norm.eps), alpha=multiplier)


def _torch_weight(weight: Weight) -> TorchWeight:
    assert isinstance(weight, TorchWeight), "made by other kernels"
    return weight
