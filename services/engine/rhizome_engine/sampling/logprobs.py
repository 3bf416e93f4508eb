"""Log probabilities of the model's own distribution, before temperature, penalties and filters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rhizome_engine.batch import TokenLogprobs
from rhizome_engine.sampling.candidates import likeliest
from rhizome_engine.sampling.row_blocks import row_chunks
from rhizome_engine.sampling.staging import to_host


class RankedLogprobs(NamedTuple):
    """Log probabilities of k rows.

    Attributes:
        chosen: [k] float32, of each row's token.
        top_tokens: [k, most] int64, the likeliest, best first, equals by token.
        top: [k, most] float32, of those.
    """

    chosen: Tensor
    top_tokens: Tensor
    top: Tensor

    def to_host(self) -> RankedLogprobs:
        """Begin the copies; see `staging.to_host`."""
        return RankedLogprobs(to_host(self.chosen), to_host(self.top_tokens), to_host(self.top))

    def to_list(self, counts: list[int]) -> list[TokenLogprobs]:
        """Return one entry per row with so many rivals; the tensors are on the host."""
        ranked = zip(self.chosen.tolist(), self.top_tokens.tolist(), self.top.tolist(), counts, strict=True)
        return [
            TokenLogprobs(logprob, list(zip(tokens[:count], values[:count], strict=True)))
            for logprob, tokens, values, count in ranked
        ]


def rank_rows(
    logits: Tensor, rows: Tensor, tokens: Tensor, most: int, *, fused: bool = False
) -> RankedLogprobs:
    """Compute log probabilities of some rows, and keep those of their tokens and of the tokens' rivals.

    Args:
        logits: [n, vocab_size] as the model gave them.
        rows: [k], k at least 1.
        tokens: [k] int64; `NO_TOKEN` gives some number.
        most: rivals.
        fused: find each row's normaliser with our own kernel, and write no logarithm of a whole vocabulary.
    """
    if fused:
        return _rank_fused(logits, rows, tokens, most)
    parts = [
        rank(logits.index_select(0, rows[chunk]).log_softmax(dim=-1), tokens[chunk], most)
        for chunk in row_chunks(len(rows), logits.device)
    ]
    return RankedLogprobs(*(torch.cat(column) for column in zip(*parts, strict=True)))


def rank(logprobs: Tensor, tokens: Tensor, most: int) -> RankedLogprobs:
    """Pick out tokens and their rivals.

    Args:
        logprobs: [k, vocab_size].
        tokens: [k] int64; `NO_TOKEN` gives some number.
        most: rivals.
    """
    chosen = logprobs.gather(1, tokens.clamp(min=0)[:, None])[:, 0]
    if not most:
        nothing = logprobs[:, :0]
        return RankedLogprobs(chosen, nothing.long(), nothing)
    best = likeliest(logprobs, most)
    return RankedLogprobs(chosen, best.tokens.gather(1, best.order), best.logits.gather(1, best.order))


def _rank_fused(logits: Tensor, rows: Tensor, tokens: Tensor, most: int) -> RankedLogprobs:
    """As `rank`, of some rows; tokens are ordered by their logits, whatever the logarithms round to."""
    from rhizome_engine.sampling.triton.normalisers import log_normalisers

    normalisers = log_normalisers(logits, rows)[:, None]
    chosen = logits[rows, tokens.clamp(min=0)] - normalisers[:, 0]
    if not most:
        nothing = logits.new_empty(len(rows), 0)
        return RankedLogprobs(chosen, nothing.long(), nothing)
    best = likeliest(logits if len(rows) == len(logits) else logits.index_select(0, rows), most)
    return RankedLogprobs(
        chosen, best.tokens.gather(1, best.order), best.logits.gather(1, best.order) - normalisers
    )
