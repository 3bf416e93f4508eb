"""Products of many rows with a matrix that is dequantised first, some of its rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MOST_ELEMENTS = 2**26
"""Of a matrix, dequantised at once: 128 MiB in 16 bits. PyTorch hands out the same memory for each part."""


def workspace_elements(out_features: int, in_features: int) -> int:
    """Return how many elements are dequantised at once."""
    return min(out_features * in_features, max(MOST_ELEMENTS, in_features))


def dequantised_product(
    x: Tensor, rows: Callable[[Tensor, torch.dtype], Tensor], out_features: int
) -> Tensor:
    """Return `x @ weight.T`, [n, out_features].

    Args:
        x: [n, in_features].
        rows: of the matrix, by their numbers and in a dtype.
        out_features: rows of the matrix.
    """
    step = max(1, MOST_ELEMENTS // x.shape[1])
    if out_features <= step:
        return x @ rows(torch.arange(out_features, device=x.device), x.dtype).t()
    out = x.new_empty(len(x), out_features)
    for start in range(0, out_features, step):
        numbers = torch.arange(start, min(start + step, out_features), device=x.device)
        out[:, start : start + step] = x @ rows(numbers, x.dtype).t()
    return out
