"""Moving a step's index arrays to the device in one copy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rhizome_engine.batch import Batch


@dataclass(frozen=True, slots=True)
class StagedTokens:
    """A step's per-token indices on the device, each [num_tokens] int64; valid until the next staging."""

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor


class TokenStaging:
    """Buffers for the largest step, allocated once.

    On a GPU the three arrays travel through one pinned buffer in one asynchronous copy. On a CPU they are
    used where they are.

    Args:
        max_num_tokens: tokens of the largest step.
        device: where the model runs.
    """

    def __init__(self, max_num_tokens: int, device: torch.device) -> None:
        self._on_device: Tensor | None = None
        if device.type == "cuda":
            self._pinned = torch.empty(3 * max_num_tokens, dtype=torch.int64, pin_memory=True)
            self._on_device = torch.empty(3 * max_num_tokens, dtype=torch.int64, device=device)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def stage(self, batch: Batch) -> StagedTokens:
        """Copy the batch's per-token arrays."""
        arrays = (batch.token_ids, batch.positions, batch.slot_mapping)
        if self._on_device is None:
            return StagedTokens(*(torch.from_numpy(array) for array in arrays))
        count = batch.num_tokens
        # A step without samples does not wait for the device: its copy may still be reading the buffer.
        self._copied.synchronize()
        for index, array in enumerate(arrays):
            self._pinned[index * count : (index + 1) * count] = torch.from_numpy(array)
        staged = self._on_device[: 3 * count]
        staged.copy_(self._pinned[: 3 * count], non_blocking=True)
        self._copied.record()
        return StagedTokens(*staged.view(3, count).unbind(0))
