"""Log probabilities of prompt tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rhizome_engine.batch import Int64, TokenLogprobs
from rhizome_engine.sampling.logprobs import rank
from rhizome_engine.sampling.staging import to_device

_FIRST_SLICE = 32
_MAX_BYTES = 64 * 2**20
"""For logits and their logarithms together."""


def score_prompt(
    hidden: Tensor, logits_of: Callable[[Tensor], Tensor], targets: Int64, top: int
) -> list[TokenLogprobs]:
    """Return the log probability of each prompt token after those before it, and of its rivals.

    Logits of a long chunk would take far more memory than the model's own work, so they are computed in
    slices. A row whose logits are no numbers gives NaN.

    Args:
        hidden: [m, hidden_size], final states of the tokens before the targets.
        logits_of: maps [k, hidden_size] to float32 [k, vocab_size].
        targets: [m].
        top: rivals per token.
    """
    on_device = to_device({"targets": targets}, hidden.device)["targets"]
    scores: list[TokenLogprobs] = []
    size = _FIRST_SLICE  # the size of the vocabulary shows in its logits
    while len(scores) < len(targets):
        part = slice(len(scores), len(scores) + size)
        logprobs = torch.log_softmax(logits_of(hidden[part]), dim=-1)
        size = max(1, _MAX_BYTES // (2 * logprobs.shape[1] * logprobs.itemsize))
        tokens = on_device[part]
        ranked = rank(logprobs, tokens, min(top, logprobs.shape[1]))
        scores += ranked.to_list([top] * len(tokens))
    return scores
