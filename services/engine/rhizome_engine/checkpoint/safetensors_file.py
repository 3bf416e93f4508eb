"""One safetensors file, mapped into memory: u64 header length, JSON header, data.

The file is read by hand because the mapping has to be ours: pages that were copied out of it are given back
at once, so that a load never holds the file and the model at the same time.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rhizome_engine.checkpoint.errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NO_RESERVE = 0x4000 if hasattr(mmap, "MADV_DONTNEED") else 0
"""MAP_NORESERVE of Linux, which Python does not name: nothing is written, so no memory need be promised."""

_MAPPED_AROUND = 2**21
"""Touching a page maps its neighbours as well, also those just before it, which were given back already."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What the header says of a tensor.

    Attributes:
        dtype: as safetensors spells it: "BF16".
        shape: of the tensor.
        start: its first byte in the file.
        end: one past its last.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        """What it takes in the file."""
        return self.end - self.start


class SafetensorsFile:
    """Tensors by name, as views of the mapped file.

    Args:
        path: the file.

    Attributes:
        path: the same.
        size: bytes of the file.
        entries: name → what the header says.

    Raises:
        CheckpointError: it is damaged; the message names the first tensor that is cut off.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.size = path.stat().st_size
            self.entries = _read_header(path, file, self.size)
            # Private and writable, because PyTorch warns of memory that it may not write.
            self._map = mmap.mmap(
                file.fileno(), self.size, mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            )

    def tensor(self, name: str) -> Tensor:
        """Return a view of the file; nothing is read yet.

        Raises:
            CheckpointError: its elements are of a type that PyTorch does not have.
        """
        entry = self.entries[name]
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise CheckpointError(
                f"{self.path}: tensor {name} holds {entry.dtype}, which is not supported; "
                f"known: {', '.join(DTYPES)}"
            )
        count = math.prod(entry.shape)
        if not count:
            return torch.empty(entry.shape, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=entry.start).view(entry.shape)

    def prefetch(self, start: int, end: int) -> None:
        """Let the system read bytes of the file ahead, while others are worked on."""
        self._advise("MADV_WILLNEED", start, end)

    def release(self, start: int, end: int) -> None:
        """Give back the memory of bytes that were used; they may be read again."""
        self._advise("MADV_DONTNEED", max(start - _MAPPED_AROUND, 0), end)

    def _advise(self, name: str, start: int, end: int) -> None:
        advice = getattr(mmap, name, None)
        start -= start % mmap.PAGESIZE
        end = min(end, self.size)
        if advice is not None and end > start:
            self._map.madvise(advice, start, end - start)


def _read_header(path: Path, file: Any, size: int) -> dict[str, TensorEntry]:
    """Read and check the header.

    Raises:
        CheckpointError: it is not one, or it promises more than the file holds.
    """
    try:
        (length,) = struct.unpack("<Q", file.read(8))
        if 8 + length > size:
            if length > 2**40:
                raise ValueError("no header")
            raise CheckpointError(
                f"{path} is damaged: it ends inside its header, after {size} bytes; download it again"
            )
        header = json.loads(file.read(length))
        entries = {
            name: _read_entry(entry, 8 + length) for name, entry in header.items() if name != "__metadata__"
        }
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged: it does not begin with a safetensors header; download it again"
        ) from error
    for name, entry in sorted(entries.items(), key=lambda item: item[1].end):
        dtype = DTYPES.get(entry.dtype)
        if dtype is not None and math.prod(entry.shape) * dtype.itemsize != entry.end - entry.start:
            raise CheckpointError(
                f"{path} is damaged: tensor {name} {list(entry.shape)} of {entry.dtype} cannot take "
                f"{entry.end - entry.start} bytes; download it again"
            )
        if entry.end > size:
            raise CheckpointError(
                f"{path} is damaged: tensor {name} ends at byte {entry.end}, but the file has {size}; "
                "download it again"
            )
    return entries


def _read_entry(entry: dict[str, Any], data_start: int) -> TensorEntry:
    start, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(size) for size in entry["shape"])
    if not 0 <= start <= end or any(size < 0 for size in shape):
        raise ValueError("no tensor")
    return TensorEntry(str(entry["dtype"]), shape, data_start + start, data_start + end)
