"""Arithmetic that several kernels share; all of it on float32."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + e^-x) without a power that overflows."""
    power = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, power) / (1.0 + power)


@triton.jit
def activate(gate, GELU: tl.constexpr):
    """Return SiLU of the gate, or GELU by its tanh formula, where (1 + tanh u) / 2 is sigmoid(2 u)."""
    if GELU:
        return gate * sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    return gate * sigmoid(gate)
