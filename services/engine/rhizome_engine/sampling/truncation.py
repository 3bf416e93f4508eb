"""Top-k, top-p and min-p over a whole vocabulary.

What the filters keep is always the first so many tokens in the order (probability downwards, token id
upwards): all above a threshold, and the first few of those that equal it. A CPU finds the threshold by
sorting the bare numbers, which vector instructions do fast; elsewhere it is found by bisection over the
numbers' bit patterns, exactly and in a fixed number of passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rhizome_engine.sampling.row_blocks import invert_sums, row_sums


class _Edge(NamedTuple):
    """Where the filters cut, both [n, 1].

    Attributes:
        threshold: float32, what is larger stays.
        remaining: float64, so many of those that equal it stay, the first in the vocabulary.
    """

    threshold: Tensor
    remaining: Tensor


def truncate_by_sorting(probs: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Zero the probabilities of tokens that are filtered out; what remains is not normalised again.

    Args:
        probs: [n, vocab_size] float32 on the CPU.
        top_k: [n, 1] int64, 0 where the filter is off.
        top_p: [n, 1] float32, 1 where the filter is off.
        min_p: [n, 1] float32.
    """
    # Sorted upwards, negative numbers are probabilities downwards.
    ranked = torch.from_numpy(np.sort(-probs.numpy(), axis=-1))
    sums = ranked.cumsum(dim=-1, dtype=torch.float64).neg_()
    limit = top_k.where(top_k > 0, probs.shape[1]).clamp_(max=probs.shape[1])
    nucleus = top_p * sums.gather(1, limit - 1)
    # The token that reaches the nucleus is still in it.
    in_nucleus = torch.searchsorted(sums, nucleus) + 1
    in_nucleus = in_nucleus.where(top_p < 1.0, limit)
    likely = torch.searchsorted(ranked, (min_p * ranked[:, :1]), right=True)
    count = limit.minimum(in_nucleus).minimum(likely).clamp_(min=1)
    last = ranked.gather(1, count - 1)
    remaining = count - torch.searchsorted(ranked, last)
    equal = torch.searchsorted(ranked, last, right=True) - torch.searchsorted(ranked, last)
    threshold = -last
    if bool((remaining == equal).all()):
        return probs * (probs >= threshold)
    return _keep(probs, _Edge(threshold, remaining.double()))


def truncate_by_bisection(probs: Tensor, top_k: Tensor | None, top_p: Tensor, min_p: Tensor) -> Tensor:
    """As `truncate_by_sorting`, on any device, never waiting for it.

    Args:
        probs: [n, vocab_size] float32.
        top_k: [n, 1] int64, 0 where the filter is off; None where it is off in all rows.
        top_p: [n, 1] float32.
        min_p: [n, 1] float32.
    """
    likely = probs * (probs >= min_p * probs.amax(dim=-1, keepdim=True))
    if top_k is not None:
        limit = top_k.where(top_k > 0, probs.shape[1])
        threshold = _least(probs, lambda value: _count_above(probs, value) < limit)
        probs = _keep(probs, _Edge(threshold, limit.double() - _count_above(probs, threshold)))
    nucleus = top_p * row_sums(probs)
    threshold = _least(probs, lambda value: _mass_above(probs, value) < nucleus)
    missing = (nucleus - _mass_above(probs, threshold)) / threshold
    remaining = missing.ceil().nan_to_num(1.0).clamp(min=1.0, max=float(probs.shape[1]))
    in_nucleus = _keep(probs, _Edge(threshold, remaining))
    # Each filter keeps the first so many, so the strictest decides.
    return in_nucleus.where(top_p < 1.0, probs).minimum(likely)


def _keep(probs: Tensor, edge: _Edge) -> Tensor:
    equal = (probs == edge.threshold).float()
    # The place of the last one to keep: its running count is the first above remaining - 1.
    last, _ = invert_sums(equal, (edge.remaining - 0.5) / row_sums(equal))
    places = torch.arange(probs.shape[1], device=probs.device)
    return probs * ((probs > edge.threshold) | ((probs == edge.threshold) & (places <= last[:, None])))


def _count_above(probs: Tensor, value: Tensor) -> Tensor:
    return (probs > value).sum(dim=-1, keepdim=True)


def _mass_above(probs: Tensor, value: Tensor) -> Tensor:
    return row_sums(probs * (probs > value))


def _least(probs: Tensor, reached: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the least float32 [n, 1] from 0 on for which `reached` holds: not below, and always above.

    If it is not 0, it is one of the row's probabilities, for `reached` changes only where one is passed; it
    holds at the largest. Floats that are not negative have the order of their bit patterns.
    """
    high = probs.amax(dim=-1, keepdim=True).view(torch.int32)
    low = torch.zeros_like(high)
    for _ in range(30):  # 1.0 has a pattern below 2 ** 30
        middle = (low + high) >> 1
        enough = reached(middle.view(torch.float32))
        high = middle.where(enough, high)
        low = low.where(enough, (middle + 1).minimum(high))
    return high.view(torch.float32)
