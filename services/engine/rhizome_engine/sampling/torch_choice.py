"""Choosing tokens with PyTorch's own operations, on any device; what kernels do is tested against it.

Which rows need what is decided on the host, from their settings; nothing waits for the device. So all shapes
of greedy and random rows follow from how many rows have which kind of settings; those of penalties also
follow from the longest history. Only on a CPU, where waiting costs nothing, rows that the likeliest tokens do
not decide are searched alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rhizome_engine.batch import NO_TOKEN, Int64, SamplingBatch, TokenMasks
from rhizome_engine.sampling.draw import (
    NUM_CANDIDATES,
    Drawn,
    DrawSettings,
    draw_filtered,
    draw_from_all,
    draw_from_top_k,
)
from rhizome_engine.sampling.logit_edits import LogitEdits
from rhizome_engine.sampling.row_blocks import argmax, row_chunks
from rhizome_engine.sampling.token_table import TokenTable


class TorchChoice:
    """One token for each row of a batch.

    Args:
        batch: the rows' settings.
        masks: tokens that a grammar allows in some rows.

    Attributes:
        arrays: what the device needs.
        changes_logits: whether `choose` does.
    """

    def __init__(self, batch: SamplingBatch, masks: TokenMasks | None) -> None:
        self._batch = batch
        self._edits = LogitEdits(batch, masks)
        self._groups = _groups(batch)
        self.changes_logits = bool(self._edits.arrays)
        self.arrays: dict[str, NDArray[Any]] = {"slots": batch.slots, "positions": batch.positions}
        self.arrays |= self._edits.arrays
        for group in self._groups:
            self.arrays |= group.arrays(batch)

    def choose(self, logits: Tensor, staged: dict[str, Tensor], table: TokenTable) -> Tensor:
        """Return [n] int64 tokens, which the table has, `NO_TOKEN` where none could be chosen.

        Args:
            logits: [n, vocab_size] float32.
            staged: `arrays` on the device.
            table: takes the new tokens, and holds all earlier ones of rows that look at them.
        """
        self._edits.apply(logits, staged, table)
        token_ids = _choose(logits, self._batch, self._groups, staged)
        table.store(staged["slots"], staged["positions"], token_ids)
        return token_ids


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that are drawn in the same way; see `draw`."""

    kind: str
    rows: Int64
    any_top_k: bool = False

    def arrays(self, batch: SamplingBatch) -> dict[str, NDArray[Any]]:
        """Return what the device needs to draw them."""
        rows = self.rows
        columns = {name: getattr(batch, name) for name in DrawSettings._fields}
        if len(rows) != len(batch):
            columns = {name: column[rows] for name, column in columns.items()}
        settings = {f"{self.kind}.{name}": column[:, None] for name, column in columns.items()}
        return {f"{self.kind}.rows": rows, **settings}

    def draw(self, logits: Tensor, settings: DrawSettings) -> Drawn:
        """Draw the tokens of these rows, whose logits they are."""
        sync_free = logits.device.type != "cpu"
        if self.kind == "unfiltered":
            return draw_from_all(logits, settings)
        if self.kind == "top_k":
            return draw_from_top_k(logits, settings, sync_free=sync_free)
        return draw_filtered(logits, settings, any_top_k=self.any_top_k, sync_free=sync_free)


def _groups(batch: SamplingBatch) -> list[_Group]:
    """Sort the rows that are drawn at random by the way in which they are."""
    random = batch.temperature > 0.0
    if not random.any():
        return []
    few = (batch.top_k > 0) & (batch.top_k <= NUM_CANDIDATES)
    filtered = (batch.top_k > 0) | (batch.top_p < 1.0) | (batch.min_p > 0.0)
    groups = [
        _Group("unfiltered", np.flatnonzero(random & ~filtered)),
        _Group("top_k", np.flatnonzero(random & few)),
    ]
    rows = np.flatnonzero(random & filtered & ~few)
    groups.append(_Group("filtered", rows, bool((batch.top_k[rows] > 0).any())))
    return [group for group in groups if len(group.rows)]


def _choose(logits: Tensor, batch: SamplingBatch, groups: list[_Group], staged: dict[str, Tensor]) -> Tensor:
    """Return [n] tokens of greedy and of drawn rows."""
    token_ids = None
    if not groups or sum(len(group.rows) for group in groups) < len(batch):
        largest, best = argmax(logits)
        token_ids = best.where(largest.isfinite(), NO_TOKEN)
    for group in groups:
        settings = DrawSettings(*(staged[f"{group.kind}.{name}"] for name in DrawSettings._fields))
        rows = staged[f"{group.kind}.rows"]
        if token_ids is None:
            token_ids = torch.empty(len(batch), dtype=torch.int64, device=logits.device)
        for part in row_chunks(len(rows), logits.device):
            of_part = logits[part] if len(rows) == len(logits) else logits.index_select(0, rows[part])
            drawn = group.draw(of_part, DrawSettings(*(s[part] for s in settings)))
            token_ids[rows[part]] = drawn.tokens.where(drawn.valid, NO_TOKEN)
    assert token_ids is not None
    return token_ids
