"""The protocol between models and what computes them: few operations per layer, fused as far as can be.

A model says *what* is computed; an implementation decides how weights lie in memory and which steps share a
pass over it. `TorchKernels` is the reference and works on every device.

A result is valid until the same operation is called again: implementations may reuse their buffers, so
that nothing is allocated in the decode loop. `embed` alone returns fresh memory, which becomes the residual
stream. What a row's result is does not depend on the other rows of the step, bit for bit where an
implementation can afford it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rhizome_engine.checkpoint.model_config import Activation
    from rhizome_engine.layers.linear import Linear
    from rhizome_engine.layers.rms_norm import RMSNorm
    from rhizome_engine.weights.base import Weight
    from rhizome_engine.weights.format import WeightFormat


class Kernels(Protocol):
    """What a decoder is computed with.

    Attributes:
        name: for logs and `GetModelInfo`.
        device: where weights and activations live.
        activation_dtype: of everything between the layers.
    """

    name: str
    device: torch.device
    activation_dtype: torch.dtype

    def new_weight(self, weight_format: WeightFormat, out_features: int, in_features: int) -> Weight:
        """Allocate a matrix in the layout that this implementation computes with; not filled."""
        ...

    def embed(self, weight: Weight, token_ids: Tensor, multiplier: float) -> Tensor:
        """Look up rows of a matrix.

        Args:
            weight: [vocab_size, hidden_size] in any format; often that of the output layer as well.
            token_ids: [n] int64.
            multiplier: for all elements.

        Returns:
            [n, hidden_size], newly allocated
        """
        ...

    def linear(self, x: Tensor, linear: Linear, norm: RMSNorm | None = None) -> Tensor:
        """Return `norm(x) @ weight.T + bias`, [n, out_features], of x [n, in_features]."""
        ...

    def gated_linear(self, x: Tensor, linear: Linear, activation: Activation, norm: RMSNorm | None) -> Tensor:
        """Return `activation(gate) * up`, [n, out_features / 2].

        Args:
            x: [n, in_features].
            linear: its output is gate and up side by side.
            activation: of the gate.
            norm: applied to x first.
        """
        ...

    def add_linear(self, residual: Tensor, x: Tensor, linear: Linear, multiplier: float = 1.0) -> None:
        """Add `multiplier * (x @ weight.T + bias)` to `residual` [n, out_features], in place."""
        ...

    def add_norm(self, residual: Tensor, x: Tensor, norm: RMSNorm, multiplier: float = 1.0) -> None:
        """Add `multiplier * norm(x)` to `residual`, both [n, size], in place."""
        ...
