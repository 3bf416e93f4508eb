"""Memory for weights: on Linux in huge pages, out of which a processor reads faster than out of small ones.

A decode step reads every weight once. In pages of 4 KiB the processor looks up a page's address for every
64 cache lines of it and its prefetcher stops at each end; in pages of 2 MiB it does not.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

HUGE_PAGE = 2**21


def new_tensor(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate zeros that will be filled once and read often.

    A large one on a CPU takes memory only where it is written, as it is filled.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if device.type != "cpu" or advice is None or num_bytes < HUGE_PAGE:
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, num_bytes + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # of a kernel without huge pages: the same in small ones
        memory.madvise(advice)
    skipped = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % HUGE_PAGE
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=skipped).view(shape)
