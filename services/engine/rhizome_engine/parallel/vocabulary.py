"""Embedding and output layer of which each rank has a range of the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from rhizome_engine.kernels.base import Kernels
from rhizome_engine.parallel.group import RankGroup
from rhizome_engine.parallel.shares import vocabulary_rows, vocabulary_span
from rhizome_engine.weights.base import Weight


class VocabularyShare:
    """The tokens of this rank.

    Args:
        vocab_size: of all ranks together.
        group: the ranks.

    Attributes:
        rows: of this rank's matrices; the same on every rank, so that the last may have more than tokens.
        first: this rank's first token.
        count: its tokens; the rows beyond them hold whatever memory held.
    """

    def __init__(self, vocab_size: int, group: RankGroup) -> None:
        self._vocab_size = vocab_size
        self._group = group
        self.rows = vocabulary_rows(vocab_size, group.size)
        self.first, stop = vocabulary_span(vocab_size, group.rank, group.size)
        self.count = stop - self.first

    def embed(self, kernels: Kernels, weight: Weight, token_ids: Tensor, multiplier: float) -> Tensor:
        """As `Kernels.embed`, of a matrix [rows, hidden_size]: a token's row comes from the rank that has it.

        The others add zeros, so that every rank gets the same bits as a single one would.
        """
        own = token_ids - self.first
        elsewhere = (own < 0) | (own >= self.count)
        x = kernels.embed(weight, own.masked_fill(elsewhere, 0), multiplier)
        x.masked_fill_(elsewhere[:, None], 0.0)
        self._group.add_up(x)
        return x

    def forbid_padding(self, logits: Tensor) -> Tensor:
        """Set what stands for no token, of [n, rows], to -inf, in place."""
        if self.count < self.rows:
            logits[:, self.count :] = float("-inf")
        return logits

    def whole(self, logits: Tensor) -> Tensor:
        """Return the logits of all ranks, [n, vocab_size], newly allocated, of this rank's [n, rows]."""
        together = self._group.gather(logits.contiguous())
        return together.transpose(0, 1).flatten(1)[:, : self._vocab_size].contiguous()

    def token_ids(self, device: torch.device) -> Tensor:
        """Return this rank's tokens, [rows] int64, those beyond the vocabulary included."""
        return torch.arange(self.first, self.first + self.rows, device=device)
