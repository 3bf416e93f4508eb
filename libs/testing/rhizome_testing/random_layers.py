"""Single layers with random parameters, for tests of kernels."""

from __future__ import annotations

import torch

from rhizome_engine.kernels.base import Kernels
from rhizome_engine.layers.linear import Linear
from rhizome_engine.layers.rms_norm import RMSNorm
from rhizome_engine.weights.format import WeightFormat


def make_linear(
    kernels: Kernels, weight_format: WeightFormat, n: int, k: int, *, bias: bool = False
) -> Linear:
    """Make a linear layer of n outputs and k inputs whose products keep the size of their input."""
    linear = Linear(kernels, weight_format, k, {"part": n}, bias=bias)
    linear.weight.fill(0, torch.randn(n, k) / k**0.5)
    if linear.bias is not None:
        linear.bias.normal_()
    return linear


def make_norm(size: int) -> RMSNorm:
    """Make a norm with gains of either sign."""
    norm = RMSNorm(size, 1e-5, device=torch.device("cpu"))
    norm.gain.normal_()
    return norm
