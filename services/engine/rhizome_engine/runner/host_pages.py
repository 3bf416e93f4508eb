"""The host tier's memory, and the copies between it and the KV pool.

A page is one row there: its keys and values of all layers, one after the other. In the pool they lie apart, a
piece per layer, so pages are gathered in a buffer on the device first, and travel in a few large copies:

    save    pool --index_select--> buffer --copy--> rows
    load    rows --copy--> buffer --index_copy--> pool

Everything is queued on the stream that computes, in the order of the calls, and the host itself never reads a
row: so nobody waits, and nothing has to be locked. On a GPU the rows are pinned, or a copy would wait for the
stream after all.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rhizome_engine.attention.paged_kv import PagedKV
from rhizome_engine.batch import Int32, PageCopy
from rhizome_engine.mapped_memory import map_zeros
from rhizome_engine.sampling.staging import to_device

_log = logging.getLogger(__name__)

_BUFFER_BYTES = 32 << 20
"""Large enough that a copy runs at the bus's speed."""


class HostPages:
    """Rows for pages beside the pool's.

    Args:
        kv: the pool.
        num_pages: rows; their page numbers follow the pool's.

    Attributes:
        data: [num_pages, 2 * num_layers, page_size * num_kv_heads * head_dim].
    """

    def __init__(self, kv: PagedKV, num_pages: int) -> None:
        self._kv = kv
        # As one page after the other; a view.
        self._pool = kv.data.flatten(0, 1).flatten(2).transpose(0, 1)
        _, pieces, piece = self._pool.shape
        row_bytes = pieces * piece * kv.data.itemsize
        memory = map_zeros(num_pages * row_bytes)
        self.data = memory.view(kv.data.dtype).view(num_pages, pieces, piece)
        if kv.data.device.type == "cuda":
            with torch.cuda.device(kv.data.device):
                _pin(self, memory)
        self._buffer = self._pool.new_empty(buffer_pages(row_bytes), pieces, piece)

    @property
    def num_pages(self) -> int:
        """Rows."""
        return len(self.data)

    def copy(self, copy: PageCopy) -> None:
        """Copy pages from one tier to the other: whole pages, all in the same direction."""
        first = self._kv.num_pages
        if copy.targets[0] >= first:
            self._save(copy.sources, copy.targets - first)
        else:
            self._load(copy.sources - first, copy.targets)

    def _save(self, pages: Int32, rows: Int32) -> None:
        for start in range(0, len(pages), len(self._buffer)):
            part = slice(start, start + len(self._buffer))
            buffer = self._buffer[: len(pages[part])]
            torch.index_select(self._pool, 0, self._indices(pages[part]), out=buffer)
            for place, row, count in _runs(rows[part]):
                self.data[row : row + count].copy_(buffer[place : place + count], non_blocking=True)

    def _load(self, rows: Int32, pages: Int32) -> None:
        for start in range(0, len(pages), len(self._buffer)):
            part = slice(start, start + len(self._buffer))
            buffer = self._buffer[: len(pages[part])]
            for place, row, count in _runs(rows[part]):
                buffer[place : place + count].copy_(self.data[row : row + count], non_blocking=True)
            self._pool.index_copy_(0, self._indices(pages[part]), buffer)

    def _indices(self, pages: Int32) -> Tensor:
        return to_device({"pages": pages.astype(np.int64)}, self._pool.device)["pages"]


def buffer_pages(page_bytes: int) -> int:
    """Return how many pages the buffer on the device has."""
    return max(_BUFFER_BYTES // page_bytes, 1)


def _runs(rows: Int32) -> Iterator[tuple[int, int, int]]:
    """Cut rows where they do not follow one another: (place of the first, the first, how many)."""
    starts = np.flatnonzero(np.diff(rows, prepend=rows[:1] - 2) != 1)
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(rows)], strict=True):
        yield start, int(rows[start]), end - start


def _pin(owner: HostPages, memory: Tensor) -> None:
    """Let the GPU read and write memory by itself.

    PyTorch's own pinned memory comes in powers of two: 5 GiB would take 8.

    Raises:
        RuntimeError: the system refused.
    """
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = memory.data_ptr()
    status = int(runtime.cudaHostRegister(address, memory.numel(), 0))
    if status:
        raise RuntimeError(
            f"the system does not pin {memory.numel()} bytes for --kv-host-memory (CUDA error {status}); "
            "`ulimit -l`, or the container's limit of locked memory, may be too low"
        )
    weakref.finalize(owner, _unpin, runtime, address, memory).atexit = False  # the system does it then


def _unpin(runtime: object, address: int, _memory: Tensor) -> None:
    """Undo it while the memory still is there; an engine in a process that goes on may be closed."""
    status = int(runtime.cudaHostUnregister(address))  # type: ignore[attr-defined]
    if status:
        _log.warning("the memory of the host tier stays pinned (CUDA error %d)", status)
