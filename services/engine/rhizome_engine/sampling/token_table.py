"""All tokens of the running requests, where they were chosen: on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rhizome_engine.batch import Int32, Int64
from rhizome_engine.kernels.triton.runtime import why_not
from rhizome_engine.sampling.staging import to_device


class TokenTable:
    """One row of token ids per slot.

    What the host has not read yet, the next step reads here; penalties and bad words look here for history.
    A row holds the tokens that were chosen while its request ran, and all earlier ones if they were loaded.

    Args:
        max_rows: slots.
        max_context: positions per slot.
        device: where the model runs.

    Attributes:
        tokens: [max_rows, max_context] int32. On a CPU, memory is used only for what is written.
    """

    def __init__(self, max_rows: int, max_context: int, device: torch.device) -> None:
        # One row more, the last: slot -1 of padding rows means it, so that no shape depends on their number.
        shape = (max_rows + 1, max_context)
        if device.type == "cpu":  # torch.zeros would write them
            self._rows = torch.from_numpy(np.zeros(shape, np.int32))
        else:
            self._rows = torch.zeros(shape, dtype=torch.int32, device=device)
        self.tokens = self._rows[:max_rows]
        self._counters: Tensor | None = None

    def counters(self, vocab_size: int) -> Tensor:
        """Return [max_rows, vocab_size] int32 on the device, for penalties to count in; zero between steps.

        They are made when they are first asked for, and stay: who records a step asks before.

        Raises:
            ValueError: they were made for another vocabulary.
        """
        if self._counters is None:
            shape = (len(self.tokens), vocab_size)
            self._counters = torch.zeros(shape, dtype=torch.int32, device=self.tokens.device)
        if self._counters.shape[1] != vocab_size:
            raise ValueError(f"the counters are for {self._counters.shape[1]} tokens, not {vocab_size}")
        return self._counters

    def load(self, slot: int, token_ids: Int32) -> None:
        """Set the first tokens of a slot: [n]."""
        row = self.tokens[slot, : len(token_ids)]
        row.copy_(to_device({"tokens": token_ids}, row.device)["tokens"])

    def fill_late(self, token_ids: Tensor, positions: Tensor, late: Int64, late_slots: Int64) -> None:
        """Write tokens that the step before chose into the inputs of this one.

        Args:
            token_ids: [num_tokens] int64, on the device; changed.
            positions: [num_tokens] int64, on the device.
            late: [d], which of them to fill.
            late_slots: [d], the slots to take them from, each at its position.
        """
        staged = to_device({"late": late, "slots": late_slots}, token_ids.device)
        places = staged["late"]
        token_ids[places] = self.tokens[staged["slots"], positions[places]].long()

    def fill_late_static(self, token_ids: Tensor, positions: Tensor, late_slots: Tensor) -> None:
        """As `fill_late`, for a step that is recorded: all tensors are on the device and keep their shapes.

        Args:
            token_ids: [num_tokens] int64; changed.
            positions: [num_tokens] int64.
            late_slots: [num_tokens] int32, the slot to take each token from; -1 leaves it as it is.
        """
        if why_not(token_ids.device) is None:
            from rhizome_engine.sampling.triton.late_tokens import fill_late

            fill_late(token_ids, positions, late_slots, self.tokens)
            return
        late = late_slots >= 0
        found = self._rows[late_slots.clamp(min=-1).long(), positions.where(late, 0)].long()
        token_ids.copy_(found.where(late, token_ids))

    def store(self, slots: Tensor, positions: Tensor, token_ids: Tensor) -> None:
        """Keep new tokens, all [n] on the device; `NO_TOKEN` becomes 0, so that the next step can run.

        Nothing is kept of padding rows, whose slot is -1.
        """
        self._rows[slots, positions] = token_ids.clamp(min=0).int()
