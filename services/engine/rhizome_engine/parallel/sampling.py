"""Choosing tokens when each rank has the logits of a range of the vocabulary.

    row                                          what travels, per rank
    greedy, or random without filters            its best token, how good it is, its largest logit
    filters, penalties, biases, masks, logprobs  its logits; rank 0 chooses and tells the others

The second kind is chosen as by a single rank. The first is a race as well (see `sampling.draw`): a token's
time depends on seed, position and token, so that the winner of the winners has won. Each rank measures its
tokens against its own largest logit; the largest of all puts their speeds in one unit. Every rank combines
the same numbers by the same arithmetic, so all of them keep the same token.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rhizome_engine.batch import NO_TOKEN, BadWords, Int64, LogitBiases, SamplingBatch, TokenMasks
from rhizome_engine.parallel.group import RankGroup
from rhizome_engine.parallel.vocabulary import VocabularyShare
from rhizome_engine.sampling.counter_rng import exponentials, keys
from rhizome_engine.sampling.row_blocks import argmax, row_chunks
from rhizome_engine.sampling.sampler import Sampled, sample
from rhizome_engine.sampling.staging import to_device, to_host
from rhizome_engine.sampling.token_table import TokenTable

_MIN_TEMPERATURE = 1e-30
"""As in `sampling.draw`."""


def choose_together(
    logits: Tensor,
    seeds: Tensor,
    positions: Tensor,
    temperature: Tensor,
    *,
    share: VocabularyShare,
    group: RankGroup,
    any_random: bool = True,
) -> Tensor:
    """Choose a token per row, greedily where the temperature is 0 and without filters elsewhere.

    All shapes follow from those of the arguments, and nothing waits for the device.

    Args:
        logits: [n, rows] float32 of this rank.
        seeds: [n, 1] int64.
        positions: [n, 1] int64.
        temperature: [n, 1] float32.
        share: this rank's tokens.
        group: the ranks.
        any_random: whether any temperature is above 0.

    Returns:
        [n] int64, the same on every rank; `NO_TOKEN` where none could be chosen.
    """
    temperature = temperature.clamp(min=_MIN_TEMPERATURE).where(temperature > 0, 0.0)
    parts = [
        _best_of_rank(logits[part], seeds[part], positions[part], temperature[part], share, any_random)
        for part in row_chunks(len(logits), logits.device)
    ]
    best = parts[0] if len(parts) == 1 else torch.cat(parts)
    return _best_of_all(group.gather(best), temperature[:, 0])


def _best_of_rank(
    logits: Tensor,
    seeds: Tensor,
    positions: Tensor,
    temperature: Tensor,
    share: VocabularyShare,
    any_random: bool,
) -> Tensor:
    """Return [n, 3] float64: the largest logit, the speed of the best token, and that token."""
    largest, likeliest = argmax(logits)
    if not any_random:
        return torch.stack((largest.double(), largest.double(), (share.first + likeliest).double()), dim=1)
    tokens = share.token_ids(logits.device)
    # A rank without tokens has no largest logit; -inf - -inf would be no number.
    top = largest.clamp(min=torch.finfo(torch.float32).min)[:, None]
    is_random = temperature > 0
    weights = ((logits - top) / temperature.where(is_random, 1.0)).exp()
    times = exponentials(keys(seeds, positions), tokens)
    speed, winner = argmax((weights / times).where(weights > 0, -1.0))
    is_random = is_random[:, 0]
    token = share.first + winner.where(is_random, likeliest)
    return torch.stack((largest.double(), speed.double(), token.double()), dim=1)


def _best_of_all(best: Tensor, temperature: Tensor) -> Tensor:
    """Combine [ranks, n, 3] of `_best_of_rank` into tokens, [n] int64; of equals, the first one.

    NaN on any rank makes the largest logit NaN, so that nothing is chosen.
    """
    largest, speed, tokens = best.unbind(-1)
    top = largest.amax(dim=0)
    is_random = temperature > 0
    unit = ((largest - top) / temperature.where(is_random, 1.0).double()).exp()
    merit = torch.where(is_random, speed * unit, largest)
    winner = merit.argmax(dim=0, keepdim=True)
    won = merit.gather(0, winner)[0]
    valid = top.isfinite() & (~is_random | ((won > 0) & won.isfinite()))
    return tokens.gather(0, winner)[0].long().where(valid, NO_TOKEN)


def sample_together(
    logits: Tensor,
    batch: SamplingBatch,
    table: TokenTable,
    masks: TokenMasks | None,
    *,
    share: VocabularyShare,
    group: RankGroup,
) -> Sampled:
    """As `sampling.sampler.sample`, of this rank's logits [n, rows]; every rank's table gets the same.

    Log probabilities are known to rank 0 only.
    """
    device = logits.device
    whole = needs_whole_logits(batch, masks)
    apart, together = np.flatnonzero(~whole), np.flatnonzero(whole)
    arrays: dict[str, NDArray[Any]] = {"slots": batch.slots, "positions": batch.positions}
    arrays |= {"apart": apart, "together": together}
    for name in ("seeds", "positions", "temperature"):
        arrays[f"apart.{name}"] = getattr(batch, name)[apart, None]
    staged = to_device(arrays, device)
    token_ids = torch.empty(len(batch), dtype=torch.int64, device=device)
    if len(apart):
        settings = (staged[f"apart.{name}"] for name in ("seeds", "positions", "temperature"))
        own = logits if len(apart) == len(batch) else logits.index_select(0, staged["apart"])
        token_ids[staged["apart"]] = choose_together(
            own, *settings, share=share, group=group, any_random=bool((batch.temperature[apart] > 0).any())
        )
    sampled: Sampled | None = None
    if len(together):
        own = logits if len(together) == len(batch) else logits.index_select(0, staged["together"])
        gathered = share.whole(own)
        chosen = torch.empty(len(together), dtype=torch.int64, device=device)
        if group.rank == 0:
            part = select_rows(batch, together)
            sampled = sample(gathered, part, table, None if masks is None else _moved(masks, together))
            chosen.copy_(sampled.token_ids)
        group.copy_from_first(chosen)
        token_ids[staged["together"]] = chosen
    table.store(staged["slots"], staged["positions"], token_ids)
    return _on_the_way(token_ids, sampled, together)


def _on_the_way(token_ids: Tensor, sampled: Sampled | None, rows: Int64) -> Sampled:
    """Return tokens of all rows, with the log probabilities of those that were chosen from whole logits."""
    host_ids = to_host(token_ids)
    copied = None
    if token_ids.device.type == "cuda":
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
    if sampled is None:
        nothing = np.empty(0, np.int64)
        return Sampled(token_ids, host_ids, nothing, nothing, None, copied)
    return replace(
        sampled, token_ids=token_ids, _host_ids=host_ids, _asking=rows[sampled._asking], _copied=copied
    )


def needs_whole_logits(batch: SamplingBatch, masks: TokenMasks | None) -> NDArray[np.bool_]:
    """Return [n], which rows are chosen from the logits of the whole vocabulary."""
    filtered = (batch.top_k > 0) | (batch.top_p < 1.0) | (batch.min_p > 0.0)
    needs: NDArray[np.bool_] = filtered & (batch.temperature > 0.0)
    needs |= batch.repetition_penalty != 1.0
    needs |= (batch.frequency_penalty != 0.0) | (batch.presence_penalty != 0.0)
    needs |= batch.top_logprobs >= 0
    for some in (batch.biases, batch.allowed, batch.bad_words, masks):
        if some is not None:
            needs[some.rows] = True
    return needs


def select_rows(batch: SamplingBatch, rows: Int64) -> SamplingBatch:
    """Return some rows, ascending, among which are all that have biases, lists of tokens or bad words."""
    columns = {
        name: getattr(batch, name)[rows]
        for name in SamplingBatch.__dataclass_fields__
        if name not in ("biases", "allowed", "bad_words")
    }
    biases, allowed, words = batch.biases, batch.allowed, batch.bad_words
    return SamplingBatch(
        **columns,
        biases=None
        if biases is None
        else LogitBiases(_new(biases.rows, rows), biases.token_ids, biases.amounts),
        allowed=None if allowed is None else _moved(allowed, rows),
        bad_words=None if words is None else BadWords(_new(words.rows, rows), words.prefixes, words.last),
    )


def _moved(masks: TokenMasks, rows: Int64) -> TokenMasks:
    return TokenMasks(_new(masks.rows, rows), masks.bits)


def _new(old: Int64, rows: Int64) -> Int64:
    """Return the places that rows have in a selection which contains them."""
    return np.searchsorted(rows, old).astype(np.int64)
