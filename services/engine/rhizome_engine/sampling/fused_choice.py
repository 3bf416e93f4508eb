"""Choosing tokens with our own kernels: a few launches, whatever the rows' settings are."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from rhizome_engine.batch import SamplingBatch, TokenMasks
from rhizome_engine.sampling.device_sampling import DeviceMasks, DeviceSampling
from rhizome_engine.sampling.logit_edits import LogitEdits
from rhizome_engine.sampling.token_table import TokenTable


class FusedChoice:
    """One token for each row of a batch, as `TorchChoice`.

    Penalties and a grammar's masks are in the kernels. Biases, bad words and lists of allowed tokens stay
    with PyTorch: few requests have some.

    Args:
        batch: the rows' settings.
        masks: tokens that a grammar allows in some rows.

    Attributes:
        arrays: what the device needs.
        changes_logits: whether `choose` does.
    """

    def __init__(self, batch: SamplingBatch, masks: TokenMasks | None) -> None:
        self._edits = LogitEdits(batch, None, penalties=False)
        counted = (batch.frequency_penalty != 0.0) | (batch.presence_penalty != 0.0)
        self._penalties = bool((counted | (batch.repetition_penalty != 1.0)).any())
        self._masked = masks is not None and len(masks.rows) > 0
        self.changes_logits = self._penalties or bool(self._edits.arrays)
        self.arrays: dict[str, NDArray[Any]] = DeviceSampling.arrays(batch) | self._edits.arrays
        if masks is not None and self._masked:
            self.arrays |= DeviceMasks.arrays(masks, len(batch))

    def choose(self, logits: Tensor, staged: dict[str, Tensor], table: TokenTable) -> Tensor:
        """Return [n] int64 tokens, which the table has, `NO_TOKEN` where none could be chosen.

        Args:
            logits: [n, vocab_size] float32.
            staged: `arrays` on the device.
            table: takes the new tokens, and holds all earlier ones of rows that look at them.
        """
        from rhizome_engine.sampling.triton.choose import choose_edited
        from rhizome_engine.sampling.triton.penalties import penalise

        settings = DeviceSampling.of(staged)
        if self._penalties:
            penalise(logits, settings, table)
        self._edits.apply(logits, staged, table)
        masks = DeviceMasks.of(staged) if self._masked else None
        return choose_edited(logits, settings, table, masks)
