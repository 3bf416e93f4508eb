"""Memory for weights: large blocks that the system may back with large pages.

A step reads all weights once. With pages of 4 KiB each of them is looked up anew, and what the hardware
fetches ahead ends at every page; pages of 2 MiB save up to a tenth of the time of a step of one row.
"""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

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
            self._block, start = _map(max(BLOCK_BYTES, num_bytes)), 0
        self._used = start + num_bytes
        return self._block[start : self._used].view(dtype)


def _map(num_bytes: int) -> Tensor:
    """Return zeroed memory straight from the system."""
    memory = mmap.mmap(-1, num_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without large pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
