"""Drawing tokens at random, all rows at once.

Each row holds a race: every token draws a time, exponentially distributed with its probability as the rate,
and the first one wins; so it wins with exactly its probability. A token's time depends on seed, position and
token only. What rounding elsewhere does to a probability therefore changes the winner only where two of them
were equally fast to the last digits. (Inverting the cumulative distribution takes one random number per row,
but then each rounding moves the boundaries of all tokens that follow.)

    rows                          who races
    no filter                     the whole vocabulary
    top-k of at most 256          the 256 likeliest tokens only, which hold everything
    other filters                 the 256 likeliest where the survivors lie among them,
                                  else what a search of the whole vocabulary leaves
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rhizome_engine.sampling.candidates import likeliest
from rhizome_engine.sampling.counter_rng import exponentials, keys
from rhizome_engine.sampling.row_blocks import argmax
from rhizome_engine.sampling.truncation import truncate_by_bisection, truncate_by_sorting

NUM_CANDIDATES = 256
"""So many of the likeliest tokens are looked at first; what survives the filters mostly lies among them."""

_MIN_TEMPERATURE = 1e-30
"""Below, everything but the likeliest has probability 0 already; logits divided by it still are finite."""


class DrawSettings(NamedTuple):
    """Settings of the rows to draw, each [n, 1] on the device; see `SamplingBatch`."""

    seeds: Tensor
    positions: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor

    def at(self, rows: Tensor) -> DrawSettings:
        """Return some of the rows."""
        return DrawSettings(*(values[rows] for values in self))

    @property
    def keys(self) -> Tensor:
        """The rows' random bits, [n, 1] int64."""
        return keys(self.seeds, self.positions)


class Drawn(NamedTuple):
    """Tokens, [n] int64, and where they mean something, [n] bool: there was something to choose from."""

    tokens: Tensor
    valid: Tensor


def race(weights: Tensor, row_keys: Tensor, token_ids: Tensor | None = None) -> Drawn:
    """Draw a token of each row in proportion to its weight.

    Args:
        weights: [n, m] float32, none negative.
        row_keys: [n, 1] int64, see `counter_rng.keys`.
        token_ids: [n, m] int64, the tokens; the whole vocabulary in order where absent.
    """
    tokens = torch.arange(weights.shape[1], device=weights.device) if token_ids is None else token_ids
    speeds = (weights / exponentials(row_keys, tokens)).where(weights > 0, -1.0)
    fastest, places = argmax(speeds)
    winners = places if token_ids is None else token_ids.gather(1, places[:, None])[:, 0]
    return Drawn(winners, fastest > 0)  # which NaN is not; a time of 0 is the fastest of all


def draw_from_all(logits: Tensor, settings: DrawSettings) -> Drawn:
    """Draw without filters.

    Args:
        logits: [n, vocab_size] float32.
        settings: of these rows.
    """
    return race(_softmax(logits, settings.temperature), settings.keys)


def draw_from_top_k(logits: Tensor, settings: DrawSettings, *, sync_free: bool) -> Drawn:
    """Draw from rows whose top-k is between 1 and `NUM_CANDIDATES`.

    Args:
        logits: [n, vocab_size] float32.
        settings: of these rows.
        sync_free: never ask the device what it found. Of tokens that equal the last candidate, which is also
            the k-th, any may then be chosen; else those that come first in the vocabulary.
    """
    drawn, decided = _draw_from_candidates(logits, None, settings)
    if sync_free or bool(decided.all()):
        return drawn
    return _draw_rest(_softmax(logits, settings.temperature), settings, drawn, decided)


def draw_filtered(
    logits: Tensor, settings: DrawSettings, *, any_top_k: bool = True, sync_free: bool
) -> Drawn:
    """Draw from rows with any filters.

    Top-k is applied first, then top-p on the probabilities renormalised over the k, then min-p relative to
    the likeliest, as in vLLM and transformers. Equal logits are ordered by token id, so exactly k remain and
    top-k 1 is greedy.

    Args:
        logits: [n, vocab_size] float32.
        settings: of these rows.
        any_top_k: whether any of them has a top-k.
        sync_free: never ask the device what it found, so that all shapes are known before; the whole
            vocabulary is then searched in all rows.
    """
    probs = _softmax(logits, settings.temperature)
    drawn, decided = _draw_from_candidates(logits, probs, settings)
    if not sync_free:
        return _draw_rest(probs, settings, drawn, decided)
    top_k = settings.top_k if any_top_k else None
    kept = truncate_by_bisection(probs, top_k, settings.top_p, settings.min_p)
    rest = race(kept, settings.keys)
    return Drawn(drawn.tokens.where(decided, rest.tokens), drawn.valid.where(decided, rest.valid))


def _draw_from_candidates(
    logits: Tensor, probs: Tensor | None, settings: DrawSettings
) -> tuple[Drawn, Tensor]:
    """Draw while looking at the likeliest tokens only.

    Args:
        logits: [n, vocab_size].
        probs: [n, vocab_size] after temperature; None where top-k leaves no more than the candidates.
        settings: of these rows.

    Returns:
        The tokens, and [n] whether the rest of the vocabulary could not have changed them.
    """
    best = likeliest(logits, NUM_CANDIDATES)
    count, whole = best.tokens.shape[1], best.tokens.shape[1] == logits.shape[1]
    top_k = settings.top_k
    ranked = best.logits.gather(1, best.order)
    in_top_k = (torch.arange(count, device=logits.device) < top_k) | (top_k == 0)
    if probs is None or whole:
        # Subtract first: a tiny temperature must not overflow.
        scaled = (ranked - ranked[:, :1]) / settings.temperature.clamp(min=_MIN_TEMPERATURE)
        weights = scaled.where(in_top_k, float("-inf")).softmax(dim=-1)
        total: Tensor | float = 1.0
    else:
        weights = probs.gather(1, best.tokens.gather(1, best.order)).where(in_top_k, 0.0)
        total = weights.sum(dim=-1, keepdim=True, dtype=torch.float64).where(top_k > 0, 1.0)
    sums = weights.cumsum(dim=-1, dtype=torch.float64)
    # A token stays while those before it have not reached top_p; the likeliest always stays.
    survives = (weights > 0) & ((sums - weights < settings.top_p * total) | (settings.top_p >= 1.0))
    survives &= weights >= settings.min_p * weights[:, :1]
    survives[:, 0] = True
    kept = torch.zeros_like(weights).scatter_(1, best.order, weights.where(survives, 0.0))
    drawn = race(kept, settings.keys, best.tokens)
    # Survivors are the first so many. If the last of them is likelier than the last candidate, then it is
    # likelier than every token that was not looked at.
    last_survivor = ranked.gather(1, survives.sum(dim=-1, keepdim=True) - 1)
    decided = (last_survivor > ranked[:, -1:]) & (top_k <= count)
    return drawn, decided[:, 0] | whole | ~drawn.valid


def _draw_rest(probs: Tensor, settings: DrawSettings, drawn: Drawn, decided: Tensor) -> Drawn:
    """Search the whole vocabulary for the rows that are not decided."""
    rest = (~decided).nonzero()[:, 0]
    if len(rest):
        few = settings.at(rest)
        kept = truncate_by_sorting(probs[rest], few.top_k, few.top_p, few.min_p)
        drawn.tokens[rest], drawn.valid[rest] = race(kept, few.keys)
    return drawn


def _softmax(logits: Tensor, temperature: Tensor) -> Tensor:
    return (logits / temperature.clamp(min=_MIN_TEMPERATURE)).softmax(dim=-1)
