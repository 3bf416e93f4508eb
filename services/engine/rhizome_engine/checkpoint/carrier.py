"""How rows of the mapped files come to where a model's weights are.

On a CPU they are used where they are. To a GPU each loading thread has a way of its own:

    pages of a file ──thread copies──▶ pinned buffer ──device fetches──▶ rows on the device ──▶ Weight.fill
                                       two in turn                       └ rounded and converted there ┘

The device fetches one buffer while the thread fills the other, and everything behind the pinned buffer is
queued on a stream of the thread's own, so nobody waits but for a buffer that still travels. Beyond the page
cache a load takes `BUFFERS * BUFFER_BYTES` of the host per thread, however large the model is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

BUFFERS = 2
"""Per thread: one that is filled and one that travels."""
BUFFER_BYTES = 2**24
"""16 MiB travel 0.3 ms at 55 GB/s, thirty times what starting a copy costs; more only takes longer to pin."""
_ALIGNMENT = 256


class Carrier(Protocol):
    """Carries rows to the device.

    Attributes:
        block_bytes: rows that come together should take about so many bytes; None leaves it to the files.
    """

    block_bytes: int | None

    def carry(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Return tensors of a file on the device, valid until this thread's next call.

        What is computed with them must be queued on the thread's current stream.
        """
        ...

    def finish(self) -> None:
        """Wait until everything that was queued is done, and give all buffers back; by the caller of all."""
        ...


class InPlace:
    """Of a CPU: the model takes what it needs from the mapped file."""

    block_bytes: int | None = None

    def carry(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """See `Carrier.carry`."""
        return list(rows)

    def finish(self) -> None:
        """See `Carrier.finish`."""


class Link(Protocol):
    """A stream of copies to a device, of one thread."""

    def host_memory(self, num_bytes: int) -> Tensor:
        """Return [num_bytes] uint8 from which the device can fetch."""
        ...

    def device_memory(self, num_bytes: int) -> Tensor:
        """Return [num_bytes] uint8 on the device."""
        ...

    def copy(self, source: Tensor, target: Tensor) -> Callable[[], None]:
        """Begin to copy host memory to device memory.

        Returns:
            what waits until the source may be overwritten
        """
        ...

    def finish(self) -> None:
        """Wait until all that was queued is done."""
        ...


class Staged:
    """Through buffers; see the module.

    Args:
        new_link: makes a thread's stream; called in that thread.
        buffer_bytes: of each buffer.
    """

    def __init__(self, new_link: Callable[[], Link], buffer_bytes: int = BUFFER_BYTES) -> None:
        self.block_bytes: int | None = buffer_bytes
        self._new_link = new_link
        self._buffer_bytes = buffer_bytes
        self._own = threading.local()
        self._lanes: list[_Lane] = []
        self._lock = threading.Lock()

    def carry(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """See `Carrier.carry`."""
        lane: _Lane | None = getattr(self._own, "lane", None)
        if lane is None:
            lane = _Lane(self._new_link(), self._buffer_bytes)
            self._own.lane = lane
            with self._lock:
                self._lanes.append(lane)
        return lane.carry(rows)

    def finish(self) -> None:
        """See `Carrier.finish`."""
        with self._lock:
            lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.link.finish()


class _Lane:
    """One thread's buffers."""

    def __init__(self, link: Link, buffer_bytes: int) -> None:
        self.link = link
        self._buffers = [link.host_memory(buffer_bytes) for _ in range(BUFFERS)]
        # One is enough: the stream begins no copy into it before what reads it is done.
        self._on_device = link.device_memory(buffer_bytes)
        self._travelled: list[Callable[[], None]] = [_at_once] * BUFFERS
        self._turn = 0

    def carry(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Return the tensors on the device; they share one journey."""
        starts, end = _places(rows)
        if end > len(self._on_device):  # a row longer than a buffer: rare, so it need not be fast
            return [tensor.to(self._on_device.device) for tensor in rows]
        buffer = self._buffers[self._turn]
        self._travelled[self._turn]()
        for start, tensor in zip(starts, rows, strict=True):
            _view(buffer, start, tensor).copy_(tensor)
        self._travelled[self._turn] = self.link.copy(buffer[:end], self._on_device[:end])
        self._turn = (self._turn + 1) % BUFFERS
        return [_view(self._on_device, start, tensor) for start, tensor in zip(starts, rows, strict=True)]


def _places(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Return where each tensor begins in a buffer, and where the last one ends."""
    starts, end = [], 0
    for tensor in tensors:
        starts.append(-(-end // _ALIGNMENT) * _ALIGNMENT)
        end = starts[-1] + tensor.nbytes
    return starts, end


def _view(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    """Return the part of a buffer that takes a tensor."""
    return buffer[start : start + like.nbytes].view(like.dtype).view(like.shape)


def _at_once() -> None:
    pass


class CudaLink:
    """A stream of a GPU; becomes the current one of the thread that makes it.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        torch.cuda.set_device(device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # The model's memory may still be in use by what was queued before the load began.
        self._stream.wait_stream(torch.cuda.default_stream(device))
        torch.cuda.set_stream(self._stream)

    def host_memory(self, num_bytes: int) -> Tensor:
        """See `Link.host_memory`."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def device_memory(self, num_bytes: int) -> Tensor:
        """See `Link.device_memory`."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def copy(self, source: Tensor, target: Tensor) -> Callable[[], None]:
        """See `Link.copy`."""
        target.copy_(source, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(self._stream)
        return copied.synchronize

    def finish(self) -> None:
        """See `Link.finish`."""
        self._stream.synchronize()


def carrier_to(device: torch.device) -> Carrier:
    """Return what carries rows to a device."""
    if device.type != "cuda":
        return InPlace()
    return _ToCuda(device)


class _ToCuda(Staged):
    def __init__(self, device: torch.device) -> None:
        super().__init__(lambda: CudaLink(device))

    def finish(self) -> None:
        """See `Carrier.finish`."""
        super().finish()
        self._own = threading.local()
        # What rounding took on the threads' streams would serve no other stream; the KV pool wants it.
        torch.cuda.empty_cache()
