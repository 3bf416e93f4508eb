"""All tokens of the running requests, where they were chosen: on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rhizome_engine.batch import Int32, Int64
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
        shape = (max_rows, max_context)
        if device.type == "cpu":  # torch.zeros would write them
            self.tokens = torch.from_numpy(np.zeros(shape, np.int32))
        else:
            self.tokens = torch.zeros(shape, dtype=torch.int32, device=device)

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

    def store(self, slots: Tensor, positions: Tensor, token_ids: Tensor) -> None:
        """Keep new tokens, all [n] on the device; `NO_TOKEN` becomes 0, so that the next step can run."""
        self.tokens[slots, positions] = token_ids.clamp(min=0).int()
