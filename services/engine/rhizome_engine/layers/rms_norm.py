"""Root-mean-square normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class RMSNorm:
    """Divide by the root mean square and multiply by a learned gain; statistics are always float32."""

    def __init__(self, size: int, eps: float, *, device: torch.device, dtype: torch.dtype) -> None:
        self.weight = torch.empty(size, device=device, dtype=dtype)
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise over the last dimension."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
