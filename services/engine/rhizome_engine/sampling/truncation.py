"""Which tokens top-k, top-p and min-p leave in the race."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rhizome_engine.sampling.params import SamplingParams

NUM_CANDIDATES = 256
"""So many of the likeliest tokens are looked at first: selecting them is many times cheaper than sorting a
vocabulary, and what survives the filters nearly always lies among them."""


def truncates(params: SamplingParams) -> bool:
    """Whether any of the three filters is on."""
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def truncate(probs: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Zero the probabilities of tokens that are filtered out; what remains is not normalised again.

    Top-k is applied first, then top-p on the probabilities renormalised over the k, then min-p relative to
    the likeliest, as in vLLM and transformers. Equal probabilities are ordered by token id, so exactly k
    remain and top-k 1 is greedy.

    Args:
        probs: [n, vocab_size], after temperature.
        params: one per row.
    """
    device, vocab_size = probs.device, probs.shape[1]
    top_k = torch.tensor([[min(p.top_k or vocab_size, vocab_size)] for p in params], device=device)
    top_p = torch.tensor([[p.top_p] for p in params], dtype=torch.float64, device=device)
    min_p = torch.tensor([[p.min_p] for p in params], dtype=probs.dtype, device=device)
    kept, decided = _truncate_best(probs, top_k, top_p, min_p, min(NUM_CANDIDATES, vocab_size))
    rest = (~decided).nonzero()[:, 0]
    if len(rest):
        kept[rest], _ = _truncate_best(probs[rest], top_k[rest], top_p[rest], min_p[rest], vocab_size)
    return kept


def _truncate_best(
    probs: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Filter while looking at the `count` likeliest tokens only.

    Args:
        probs: [n, vocab_size].
        top_k: [n, 1]; vocab_size where the filter is off.
        top_p: [n, 1] float64.
        min_p: [n, 1].
        count: how many tokens are looked at; all of them decide every row.

    Returns:
        kept: [n, vocab_size], probabilities of the survivors and zeros.
        decided: [n], whether the rest of the vocabulary could not have changed that row.
    """
    vocab_size = probs.shape[1]
    ordered, tokens = _likeliest(probs, count)
    in_top_k = torch.arange(count, device=probs.device) < top_k
    candidates = ordered.where(in_top_k, 0.0)
    sums = candidates.cumsum(dim=-1, dtype=torch.float64)
    whole = probs.sum(dim=-1, keepdim=True, dtype=torch.float64)
    total = sums[:, -1:].where(top_k < vocab_size, whole)
    # A token stays while those before it have not reached top_p; the likeliest always stays.
    survives = in_top_k & ((sums - candidates < top_p * total) | (top_p >= 1.0))
    survives &= ordered >= min_p * ordered[:, :1]
    survives[:, 0] = True
    kept = torch.zeros_like(probs).scatter_(1, tokens, ordered.where(survives, 0.0))
    # Survivors are the first so many. If the last of them is likelier than the last candidate, then it is
    # likelier than every token that was not looked at.
    last_survivor = ordered.gather(1, survives.sum(dim=-1, keepdim=True) - 1)
    decided = (last_survivor > ordered[:, -1:]) & ((top_k <= count) | (top_k == vocab_size))
    return kept, decided[:, 0] | (count == vocab_size)


def _likeliest(probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest probabilities and their tokens, [n, count]; equals in token order."""
    if count == probs.shape[1]:
        return probs.sort(dim=-1, descending=True, stable=True)
    values, tokens = probs.topk(count, dim=-1, sorted=False)
    tokens, order = tokens.sort(dim=-1)
    values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    return values, tokens.gather(1, order)
