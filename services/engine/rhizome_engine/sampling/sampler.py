"""From logits to tokens, all rows at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rhizome_engine.batch import SampleRow, StepOutput, TokenLogprobs
from rhizome_engine.sampling.counter_rng import uniforms
from rhizome_engine.sampling.logit_edits import edit_logits
from rhizome_engine.sampling.truncation import truncate, truncates


def sample(logits: Tensor, rows: Sequence[SampleRow]) -> StepOutput:
    """Choose one token per row.

    A row's token depends on its logits, its settings, its seed and its position only.

    Args:
        logits: [n, vocab_size] float32.
        rows: one per row of `logits`.

    Returns:
        Tokens, and log probabilities where asked for. Those are the model's own: before temperature,
        penalties and filters.

    Raises:
        ValueError: a logit bias names a token outside the vocabulary.
    """
    if not rows:
        return StepOutput([], [])
    edited = edit_logits(logits, rows)
    chosen = edited.argmax(dim=-1)
    random_rows = [index for index, row in enumerate(rows) if not row.params.greedy]
    if random_rows:
        if len(random_rows) == len(rows):
            chosen = _draw(edited, rows)
        else:
            places = torch.tensor(random_rows, device=logits.device)
            chosen[places] = _draw(edited[places], [rows[index] for index in random_rows])
    return StepOutput(chosen.tolist(), _logprobs(logits, chosen, rows))


def _draw(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Return [n] tokens, each by inverting its row's cumulative distribution at the row's random number.

    The distribution is summed in the order of token ids, not of probabilities: two tokens of nearly equal
    probability that swap ranks through rounding elsewhere then change nothing.
    """
    device = logits.device
    temperature = torch.tensor([[row.params.temperature] for row in rows], dtype=logits.dtype, device=device)
    temperature.clamp_(min=torch.finfo(logits.dtype).tiny)  # what is too small for the format became 0
    # Subtract first: a tiny temperature must not overflow.
    probs = ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)
    filtered = [index for index, row in enumerate(rows) if truncates(row.params)]
    if filtered:
        places = torch.tensor(filtered, device=device)
        probs[places] = truncate(probs[places], [rows[index].params for index in filtered])
    sums = probs.cumsum(dim=-1, dtype=torch.float64)
    total = sums[:, -1:]
    numbers = uniforms([row.seed for row in rows], [row.position for row in rows])
    target = torch.from_numpy(numbers).to(device)[:, None] * total
    # Rounding may give the total itself, which lies beyond the last token.
    target = target.minimum(torch.nextafter(total, torch.zeros_like(total)))
    # right=True: the first sum above the target, which a token of probability 0 never is.
    # Logits that are no numbers (a damaged model) end beyond the vocabulary, which would stop the engine.
    return torch.searchsorted(sums, target, right=True)[:, 0].clamp_(max=logits.shape[1] - 1)


def _logprobs(logits: Tensor, chosen: Tensor, rows: Sequence[SampleRow]) -> list[TokenLogprobs | None]:
    """Return the log probabilities of the rows that ask for them."""
    results: list[TokenLogprobs | None] = [None] * len(rows)
    asking = [index for index, row in enumerate(rows) if row.params.top_logprobs is not None]
    if not asking:
        return results
    places = torch.tensor(asking, device=logits.device)
    logprobs = logits[places].log_softmax(dim=-1)
    of_chosen = logprobs.gather(1, chosen[places][:, None])[:, 0].tolist()
    most = min(max(rows[index].params.top_logprobs or 0 for index in asking), logits.shape[1])
    best, best_ids = logprobs.topk(most, dim=-1)
    best_values, best_tokens = best.tolist(), best_ids.tolist()
    for place, index in enumerate(asking):
        count = rows[index].params.top_logprobs or 0
        top = list(zip(best_tokens[place][:count], best_values[place][:count], strict=True))
        results[index] = TokenLogprobs(of_chosen[place], top)
    return results
