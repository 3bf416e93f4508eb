"""The few likeliest tokens of each row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_GROUP = 16


class Candidates(NamedTuple):
    """The likeliest tokens of each row, all [n, count].

    Tokens with a logit above that of the last in `order` are all there; of those that equal it, some are.

    Attributes:
        tokens: int64, ascending.
        logits: float32, of those tokens.
        order: int64, where to find them from the likeliest on; equals by token.
    """

    tokens: Tensor
    logits: Tensor
    order: Tensor


def likeliest(logits: Tensor, count: int) -> Candidates:
    """Select the `count` largest logits of each row of [n, vocab_size].

    A selection from the whole vocabulary is slow. So tokens are grouped by 16, and only the `count` groups
    with the largest maxima are searched: a token outside of them has at least `count` tokens that are not
    less likely. Tokens of a group lie far apart, which makes the maxima a plain vector operation.
    """
    vocab_size = logits.shape[1]
    count = min(count, vocab_size)
    num_groups = vocab_size // _GROUP
    if num_groups < 2 * count:
        values, tokens = logits.topk(count, dim=-1, sorted=False)
    else:
        whole = num_groups * _GROUP
        maxima = logits[:, :whole].view(len(logits), _GROUP, num_groups).amax(dim=1)
        groups = maxima.topk(count, dim=-1, sorted=False).indices
        offsets = torch.arange(0, whole, num_groups, device=logits.device)
        within = (groups[:, None, :] + offsets[:, None]).flatten(1)
        rest = torch.arange(whole, vocab_size, device=logits.device).expand(len(logits), -1)
        searched = torch.cat((within, rest), dim=1)
        values, chosen = logits.gather(1, searched).topk(count, dim=-1, sorted=False)
        tokens = searched.gather(1, chosen)
    tokens, by_token = tokens.sort(dim=-1)
    values = values.gather(1, by_token)
    return Candidates(tokens, values, values.sort(dim=-1, descending=True, stable=True).indices)
