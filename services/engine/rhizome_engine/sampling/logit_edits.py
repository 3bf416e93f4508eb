"""Changes to logits before a token is chosen: penalties, biases, banned tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rhizome_engine.batch import SampleRow


def edit_logits(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Apply each row's penalties, logit bias and banned ids.

    Args:
        logits: [n, vocab_size] float32; left as they are.
        rows: one per row of `logits`.

    Returns:
        The logits themselves when no row asks for anything, else a changed copy.

    Raises:
        ValueError: a bias or a ban names a token outside the vocabulary.
    """
    if not any(row.params.has_penalties or row.params.logit_bias or row.banned_ids for row in rows):
        return logits
    logits = logits.clone()
    for index, row in enumerate(rows):
        if row.params.has_penalties:
            _penalise(logits[index], row)
    _add_biases(logits, rows)
    return logits


def _penalise(logits: Tensor, row: SampleRow) -> None:
    """Change one row in place; definitions as in vLLM and OpenAI's reference."""
    params = row.params
    output = torch.tensor(row.output_ids, dtype=torch.int64, device=logits.device)
    if params.repetition_penalty != 1.0:
        prompt = torch.tensor(row.prompt_ids, dtype=torch.int64, device=logits.device)
        seen = torch.unique(torch.cat((prompt, output)))
        values = logits[seen]
        scale = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / scale, values * scale)
    if len(output):
        ids, counts = torch.unique(output, return_counts=True)
        logits[ids] -= params.frequency_penalty * counts + params.presence_penalty


def _add_biases(logits: Tensor, rows: Sequence[SampleRow]) -> None:
    """Add biases and ban tokens in all rows at once."""
    places: list[tuple[int, int]] = []
    amounts: list[float] = []
    for index, row in enumerate(rows):
        for token_id, bias in row.params.logit_bias.items():
            places.append((index, token_id))
            amounts.append(bias)
        for token_id in row.banned_ids:
            places.append((index, token_id))
            amounts.append(float("-inf"))
    if not places:
        return
    vocab_size = logits.shape[1]
    for _, token_id in places:
        if not 0 <= token_id < vocab_size:
            raise ValueError(
                f"biased or banned token id {token_id} is outside the vocabulary of {vocab_size}"
            )
    indices = torch.tensor(places, dtype=torch.int64, device=logits.device)
    values = torch.tensor(amounts, dtype=logits.dtype, device=logits.device)
    logits.index_put_((indices[:, 0], indices[:, 1]), values, accumulate=True)
