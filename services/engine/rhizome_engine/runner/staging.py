"""A step's token arrays where they are computed, for steps that are not recorded.

A GPU gets them through the same buffers as recorded steps, in one copy; a CPU uses them where they are.
Tokens that the host has not read are filled in either way.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rhizome_engine.batch import Batch
from rhizome_engine.runner.step_buffers import StepBuffers, StepShape
from rhizome_engine.sampling.token_table import TokenTable

_GRAIN = 64
"""Views are made for multiples of so many tokens, so that there are few of them."""


class StagedTokens(NamedTuple):
    """A step's per-token arrays on the device, each [num_tokens] int64; valid until the next staging."""

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor


class TokenStaging:
    """See the head of this module.

    Args:
        tokens: what the host has not read.
        max_num_tokens: tokens of the largest step.
        buffers: bring arrays to the device; None uses them where they are.
    """

    def __init__(self, tokens: TokenTable, max_num_tokens: int, buffers: StepBuffers | None) -> None:
        self._tokens = tokens
        self._most = max_num_tokens
        self._buffers = buffers

    def stage(self, batch: Batch) -> StagedTokens:
        """Bring a step's arrays to the device, all of its token ids known there."""
        if self._buffers is None:
            token_ids, positions, slot_mapping = (
                torch.from_numpy(array) for array in (batch.token_ids, batch.positions, batch.slot_mapping)
            )
            if len(batch.late):
                self._tokens.fill_late(token_ids, positions, batch.late, batch.late_slots)
            return StagedTokens(token_ids, positions, slot_mapping)
        count = batch.num_tokens
        shape = StepShape(min(-(-count // _GRAIN) * _GRAIN, self._most))
        arrays = self._buffers.send(shape, batch)
        token_ids, positions = arrays.token_ids[:count], arrays.positions[:count]
        if len(batch.late):
            self._tokens.fill_late_static(token_ids, positions, arrays.late_slots[:count])
        return StagedTokens(token_ids, positions, arrays.slot_mapping[:count])
