"""Several linear layers that read the same input, computed as one matrix product."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rhizome_engine.kernels.base import Kernels
from rhizome_engine.weights.format import WeightFormat


class Linear:
    """`y = x @ weight.T + bias` whose rows belong to one or several layers of the checkpoint.

    One large product reads the input once and keeps the threads busier than two or three small ones.
    What computes it is `Kernels`; this is only where its parameters are.

    Args:
        kernels: make the weight and will compute with it.
        weight_format: how the weight is kept.
        in_features: width of the input.
        parts: name in the checkpoint ("model.layers.0.self_attn.q_proj") → output width, in order.
        bias: whether each part has one.

    Attributes:
        weight: [out_features, in_features] in some format.
        bias: [out_features] in the kernels' activation dtype, or None.
        row_of: part → its first row.
    """

    def __init__(
        self,
        kernels: Kernels,
        weight_format: WeightFormat,
        in_features: int,
        parts: Mapping[str, int],
        *,
        bias: bool = False,
    ) -> None:
        self.parts = dict(parts)
        self.in_features = in_features
        self.out_features = sum(parts.values())
        self.weight = kernels.new_weight(weight_format, self.out_features, in_features)
        dtype, device = kernels.activation_dtype, kernels.device
        self.bias = torch.empty(self.out_features, dtype=dtype, device=device) if bias else None
        self.row_of: dict[str, int] = {}
        row = 0
        for name, size in self.parts.items():
            self.row_of[name] = row
            row += size
