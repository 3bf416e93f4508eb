"""From logits to tokens, all rows at once.

Which rows need what is decided on the host, from their settings; nothing waits for the device. So all shapes
of greedy and random rows follow from how many rows have which kind of settings, and a CUDA graph could be
recorded per such mix; those of penalties also follow from the longest history. Only on a CPU, where waiting
costs nothing, rows that the likeliest tokens do not decide are searched alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rhizome_engine.batch import NO_TOKEN, Int64, SamplingBatch, TokenLogprobs, TokenMasks
from rhizome_engine.sampling.draw import (
    NUM_CANDIDATES,
    Drawn,
    DrawSettings,
    draw_filtered,
    draw_from_all,
    draw_from_top_k,
)
from rhizome_engine.sampling.logit_edits import LogitEdits
from rhizome_engine.sampling.logprobs import RankedLogprobs, rank_rows
from rhizome_engine.sampling.row_blocks import argmax, row_chunks
from rhizome_engine.sampling.staging import to_device, to_host
from rhizome_engine.sampling.token_table import TokenTable


@dataclass(frozen=True, slots=True)
class Sampled:
    """Tokens that were chosen, on their way to the host.

    Attributes:
        token_ids: [n] int64 on the device, `NO_TOKEN` where none could be chosen.
    """

    token_ids: Tensor
    _host_ids: Tensor
    _asking: Int64
    _counts: Int64
    _logprobs: RankedLogprobs | None
    _copied: torch.cuda.Event | None

    def to_host(self) -> tuple[list[int], list[TokenLogprobs | None]]:
        """Wait for the tokens and for the log probabilities of rows that want them and got a token."""
        if self._copied is not None:
            self._copied.synchronize()
        token_ids: list[int] = self._host_ids.tolist()
        logprobs: list[TokenLogprobs | None] = [None] * len(token_ids)
        if self._logprobs is not None:
            ranked = self._logprobs.to_list(self._counts.tolist())
            for row, entry in zip(self._asking.tolist(), ranked, strict=True):
                if token_ids[row] != NO_TOKEN:
                    logprobs[row] = entry
        return token_ids, logprobs


def sample(logits: Tensor, batch: SamplingBatch, table: TokenTable, masks: TokenMasks | None) -> Sampled:
    """Choose one token per row and keep it in the table.

    A row's token depends on its logits, its settings, its seed and its position only.

    Args:
        logits: [n, vocab_size] float32; changed by penalties, biases and masks.
        batch: the rows' settings.
        table: takes the new tokens, and holds all earlier ones of rows that look at them.
        masks: tokens that a grammar allows in some rows.

    Returns:
        Tokens, and log probabilities where asked for. Those are the model's own: before temperature,
        penalties and filters.
    """
    device = logits.device
    edits = LogitEdits(batch, masks)
    groups = _groups(batch)
    asking = np.flatnonzero(batch.top_logprobs >= 0)
    counts = np.minimum(batch.top_logprobs[asking], logits.shape[1])
    arrays: dict[str, NDArray[Any]] = {"slots": batch.slots, "positions": batch.positions, "asking": asking}
    arrays |= edits.arrays
    for group in groups:
        arrays |= group.arrays(batch)
    staged = to_device(arrays, device)

    asking_rows = staged["asking"]
    model_logits = logits.clone() if len(asking) and edits.arrays else logits
    edits.apply(logits, staged, table)
    token_ids = _choose(logits, batch, groups, staged)
    table.store(staged["slots"], staged["positions"], token_ids)

    ranked = None
    if len(asking):
        most = int(counts.max())
        ranked = rank_rows(model_logits, asking_rows, token_ids.index_select(0, asking_rows), most).to_host()
    host_ids = to_host(token_ids)
    copied = None
    if device.type == "cuda":
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
    return Sampled(token_ids, host_ids, asking, counts, ranked, copied)


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
