"""From logits to tokens, all rows at once.

Nothing here waits for a GPU: the tokens are on their way to the host when `sample` returns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rhizome_engine.batch import NO_TOKEN, Int64, SamplingBatch, TokenLogprobs, TokenMasks
from rhizome_engine.kernels.triton.runtime import why_not
from rhizome_engine.sampling.fused_choice import FusedChoice
from rhizome_engine.sampling.logprobs import RankedLogprobs, rank_rows
from rhizome_engine.sampling.staging import to_device, to_host
from rhizome_engine.sampling.token_table import TokenTable
from rhizome_engine.sampling.torch_choice import TorchChoice


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


def sample(
    logits: Tensor,
    batch: SamplingBatch,
    table: TokenTable,
    masks: TokenMasks | None,
    *,
    fused: bool | None = None,
) -> Sampled:
    """Choose one token per row and keep it in the table.

    A row's token depends on its logits, its settings, its seed and its position only.

    Args:
        logits: [n, vocab_size] float32; changed by penalties, biases and masks.
        batch: the rows' settings.
        table: takes the new tokens, and holds all earlier ones of rows that look at them.
        masks: tokens that a grammar allows in some rows.
        fused: with our own kernels or with PyTorch's operations; None takes kernels where there is a GPU that
            can run them.

    Returns:
        Tokens, and log probabilities where asked for. Those are the model's own: before temperature,
        penalties and filters.
    """
    device = logits.device
    if fused is None:
        fused = device.type != "cpu" and why_not(device) is None
    choice = FusedChoice(batch, masks) if fused else TorchChoice(batch, masks)
    asking = np.flatnonzero(batch.top_logprobs >= 0)
    counts = np.minimum(batch.top_logprobs[asking], logits.shape[1])
    staged = to_device({"asking": asking, **choice.arrays}, device)
    rows = staged["asking"]
    asked_logits, asked_rows = logits, rows
    if len(asking) and choice.changes_logits:
        asked_logits, asked_rows = logits.index_select(0, rows), torch.arange(len(rows), device=device)
    token_ids = choice.choose(logits, staged, table)

    ranked = None
    if len(asking):
        asked_tokens = token_ids.index_select(0, rows)
        ranked = rank_rows(asked_logits, asked_rows, asked_tokens, int(counts.max()), fused=fused).to_host()
    host_ids = to_host(token_ids)
    copied = None
    if device.type == "cuda":
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
    return Sampled(token_ids, host_ids, asking, counts, ranked, copied)
