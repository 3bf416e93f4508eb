"""A reference sampler written out with loops, and a way to sample rows that are described one by one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from rhizome_engine.batch import NO_TOKEN, TokenMasks
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.sampling.rows import SamplingRows
from rhizome_engine.sampling.sampler import sample
from rhizome_engine.sampling.token_table import TokenTable


@dataclass
class Row:
    """A row as a test describes it."""

    params: SamplingParams
    seed: int = 0
    prompt: list[int] = field(default_factory=lambda: [0])
    output: list[int] = field(default_factory=list)
    stop_ids: list[int] = field(default_factory=list)
    min_tokens: int = 0
    grammar: list[int] | None = None
    position: int | None = None
    """Of the new token where it does not follow from the tokens, which then must not matter."""


def bits_of(token_ids, vocab_size):
    """Allowed tokens as a mask, one token at a time."""
    words = [0] * math.ceil(vocab_size / 32)
    for token in token_ids:
        words[token // 32] |= 1 << token % 32
    return np.array(words, np.uint32).view(np.int32)


def sample_rows(logits, rows, *, slots=None, logprobs=False, max_context=64):
    """Return the tokens of rows in the given slots, or in slot 0 and up; with log probabilities on demand."""
    slots = list(range(len(rows))) if slots is None else slots
    vocab_size = logits.shape[1]
    settings = SamplingRows(max(slots, default=0) + 1, vocab_size)
    table = TokenTable(max(slots, default=0) + 1, max_context, torch.device("cpu"))
    for slot, row in zip(slots, rows, strict=True):
        settings.set(slot, row.params, row.seed, len(row.prompt), row.stop_ids, row.min_tokens)
        table.load(slot, np.array(row.prompt + row.output, np.int32))
    masked = [index for index, row in enumerate(rows) if row.grammar is not None]
    masks = None
    if masked:
        bits = np.stack([bits_of(rows[index].grammar, vocab_size) for index in masked])
        masks = TokenMasks(np.array(masked, np.int64), bits)
    known = [len(row.prompt + row.output) if row.position is None else row.position for row in rows]
    batch = settings.build(np.arange(len(rows)), np.array(slots, np.int64), np.array(known, np.int64))
    tokens, found = sample(logits.clone(), batch, table, masks).to_host()
    for slot, position, token in zip(slots, known, tokens, strict=True):
        assert table.tokens[slot, position] == (0 if token == NO_TOKEN else token)
    return (tokens, found) if logprobs else tokens


def edited_logits(logits, row):
    """What a row's logits become, one token at a time."""
    params, known = row.params, row.prompt + row.output
    edited = []
    for token, logit in enumerate(float(value) for value in logits):
        if token in known:
            logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
        count = row.output.count(token)
        if count:
            logit -= params.frequency_penalty * count + params.presence_penalty
        logit += params.logit_bias.get(token, 0.0)
        ends_bad_word = any(
            word[-1] == token and (len(word) == 1 or tuple(known[-len(word) + 1 :]) == word[:-1])
            for word in params.bad_words
        )
        if (
            ends_bad_word
            or (params.allowed_token_ids is not None and token not in params.allowed_token_ids)
            or (row.grammar is not None and token not in row.grammar)
            or (token in row.stop_ids and len(row.output) < row.min_tokens)
        ):
            logit = -math.inf
        edited.append(logit)
    return edited


def reference_probabilities(logits, row):
    """The distribution that a row is drawn from, in float64; None where nothing may be chosen."""
    params, logits = row.params, edited_logits(logits, row)
    top = max(logits)
    if top == -math.inf:
        return None
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if params.greedy:
        return [float(token == order[0]) for token in range(len(logits))]
    probs = [math.exp((value - top) / params.temperature) for value in logits]
    kept = order[: params.top_k or len(order)]
    total = sum(probs[token] for token in kept)
    nucleus, reached = [], 0.0
    for token in kept:
        if nucleus and params.top_p < 1.0 and reached >= np.float32(params.top_p) * total:
            break
        nucleus.append(token)
        reached += probs[token]
    survivors = {token for token in nucleus if probs[token] >= np.float32(params.min_p) * probs[order[0]]}
    total = sum(probs[token] for token in survivors)
    return [probs[token] / total if token in survivors else 0.0 for token in range(len(probs))]
