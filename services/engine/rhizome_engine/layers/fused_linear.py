"""Several linear layers that read the same input, computed as one matrix product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class FusedLinear:
    """`y = x @ weight.T + bias` whose rows belong to several layers of the checkpoint.

    One large product reads the input once and keeps the threads busier than two or three small ones.

    Args:
        in_features: width of the input.
        parts: name in the checkpoint ("q_proj") → output width, in the order of the rows.
        bias: whether each part has one.
        device: where the parameters live.
        dtype: of the parameters.
    """

    def __init__(
        self, in_features: int, parts: dict[str, int], *, bias: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.parts = parts
        out_features = sum(parts.values())
        self.weight = torch.empty(out_features, in_features, device=device, dtype=dtype)
        self.bias = torch.empty(out_features, device=device, dtype=dtype) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        """Return [num_tokens, sum of parts]."""
        return F.linear(x, self.weight, self.bias)

    def weight_targets(self, prefix: str) -> dict[str, Tensor]:
        """Map the checkpoint's tensor names, which begin with `prefix`, to their rows."""
        targets: dict[str, Tensor] = {}
        start = 0
        for name, size in self.parts.items():
            targets[f"{prefix}{name}.weight"] = self.weight[start : start + size]
            if self.bias is not None:
                targets[f"{prefix}{name}.bias"] = self.bias[start : start + size]
            start += size
        return targets
