"""Matrices of few bits on a GPU: which class keeps which format."""

from __future__ import annotations

import torch

from rhizome_engine.kernels.triton.byte_weights import TritonFp8, TritonInt8
from rhizome_engine.kernels.triton.grouped_weight import TritonGrouped
from rhizome_engine.weights.format import Fp8, Grouped, Int8, WeightFormat


def new_quantised_weight(
    weight_format: WeightFormat,
    out_features: int,
    in_features: int,
    device: torch.device,
    activation_dtype: torch.dtype,
) -> TritonInt8 | TritonFp8 | TritonGrouped:
    """Allocate a matrix, not filled; on "meta" it has its sizes and no contents.

    Raises:
        ValueError: no kernel computes with such a matrix on this device.
    """
    if isinstance(weight_format, Int8):
        return TritonInt8(weight_format, out_features, in_features, device)
    if isinstance(weight_format, Fp8):
        return TritonFp8(weight_format, out_features, in_features, device, activation_dtype)
    if isinstance(weight_format, Grouped):
        return TritonGrouped(weight_format, out_features, in_features, device, activation_dtype)
    raise ValueError(f"{weight_format} is not quantised")
