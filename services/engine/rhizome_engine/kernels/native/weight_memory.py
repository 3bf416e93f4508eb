"""Memory for weights: blocks that are large enough for large pages."""

from __future__ import annotations

import torch
from torch import Tensor

from rhizome_engine.mapped_memory import map_zeros

BLOCK_BYTES = 64 << 20
ALIGNMENT = 64  # a line of the cache, a vector of AVX-512


class WeightMemory:
    """Hands out zeroed tensors, one after the other; a block is given back with the last of its tensors."""

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def zeros(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return `count` zeros, aligned to 64 bytes; they take memory when they are first written."""
        num_bytes = count * dtype.itemsize
        start = -(-self._used // ALIGNMENT) * ALIGNMENT
        if start + num_bytes > len(self._block):
            self._block, start = map_zeros(max(BLOCK_BYTES, num_bytes)), 0
        self._used = start + num_bytes
        return self._block[start : self._used].view(dtype)
