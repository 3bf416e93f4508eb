"""Chosen tokens on their way back: copied to pinned memory at once, read a step later.

    recording's output ──asynchronous copy──▶ pinned buffer, event ──▶ read when the host comes to it

A buffer is handed back when its tokens were read, so two of them serve for ever. One that is never read, as
of a step that failed, is simply not handed back.
"""

from __future__ import annotations

import torch
from torch import Tensor


class _PinnedTokens:
    """One buffer.

    Attributes:
        memory: [most] int64.
        values: the same for numpy.
        copied: recorded after the copy; None where it is done when it returns.
        fronts: its first so many places, by how many.
    """

    def __init__(self, most: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self.memory = torch.empty(most, dtype=torch.int64, pin_memory=on_gpu)
        self.values = self.memory.numpy()
        self.copied = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        self.fronts: dict[int, Tensor] = {}


class PendingTokens:
    """Tokens under way to the host."""

    def __init__(self, buffers: ResultBuffers, buffer: _PinnedTokens, count: int) -> None:
        self._buffers = buffers
        self._buffer: _PinnedTokens | None = buffer
        self._count = count

    def read(self) -> list[int]:
        """Wait for them; once."""
        buffer, self._buffer = self._buffer, None
        assert buffer is not None, "read before"
        if buffer.copied is not None:
            buffer.copied.synchronize()
        tokens: list[int] = buffer.values[: self._count].tolist()
        self._buffers.free.append(buffer)
        return tokens


class ResultBuffers:
    """Pinned memory for tokens.

    Args:
        most: tokens of a step.
        device: where they come from.

    Attributes:
        free: buffers that nobody waits for.
    """

    def __init__(self, most: int, device: torch.device) -> None:
        self._most = most
        self._device = device
        self.free = [_PinnedTokens(most, device) for _ in range(2)]

    def fetch(self, tokens: Tensor, count: int) -> PendingTokens:
        """Begin to copy a step's tokens.

        Args:
            tokens: [n] int64 on the device; they may change once the stream has come past here.
            count: so many of them are wanted.
        """
        buffer = self.free.pop() if self.free else _PinnedTokens(self._most, self._device)
        size = len(tokens)
        front = buffer.fronts.get(size)
        if front is None:
            front = buffer.fronts[size] = buffer.memory[:size]
        front.copy_(tokens, non_blocking=True)
        if buffer.copied is not None:
            buffer.copied.record()
        return PendingTokens(self, buffer, count)
