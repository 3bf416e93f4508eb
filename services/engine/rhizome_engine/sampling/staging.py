"""Moving a step's small arrays between the host and the device.

On a CPU they are used where they are. A GPU gets all of them in one asynchronous copy from pinned memory;
PyTorch's allocator gives that memory out again only when the copy is done, so nobody has to wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 16


def to_device(arrays: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """Return the arrays as tensors on the device; uint64 becomes int64 with the same bits."""
    signed = {name: a.view(np.int64) if a.dtype == np.uint64 else a for name, a in arrays.items()}
    if device.type == "cpu":
        return {name: torch.from_numpy(array) for name, array in signed.items()}
    return packed_copy(signed, device)


def packed_copy(arrays: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """Copy the arrays one after the other into one buffer, the buffer to the device, and cut it up there."""
    starts, size = [], 0
    for array in arrays.values():
        starts.append(size)
        size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    window = pinned.numpy()
    for start, array in zip(starts, arrays.values(), strict=True):
        window[start : start + array.nbytes].view(array.dtype)[:] = array.reshape(-1)
    moved = pinned.to(device, non_blocking=True)
    return {
        name: moved[start : start + array.nbytes].view(_dtype_of(array)).view(array.shape)
        for start, (name, array) in zip(starts, arrays.items(), strict=True)
    }


def to_host(tensor: Tensor) -> Tensor:
    """Begin to copy a tensor to the host; on a GPU its values are there once the stream has come that far."""
    if tensor.device.type in ("cpu", "meta"):
        return tensor
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return pinned.copy_(tensor, non_blocking=True)


def _dtype_of(array: NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype
