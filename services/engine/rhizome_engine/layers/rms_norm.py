"""Root-mean-square normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class RMSNorm:
    """Divide by the root mean square and multiply by a learned gain; the statistics are float32.

    Args:
        size: width of what is normalised.
        eps: added to the mean square.
        device: where the gain lives.

    Attributes:
        gain: [size] float32; where a checkpoint stores gain - 1, as Gemma does, the loader adds the 1.
    """

    def __init__(self, size: int, eps: float, *, device: torch.device) -> None:
        self.gain = torch.empty(size, device=device, dtype=torch.float32)
        self.eps = eps


def normalise(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Normalise over the last dimension in float32, and return the dtype of x; the reference in PyTorch."""
    return F.rms_norm(x.float(), gain.shape, gain, eps).to(x.dtype)
