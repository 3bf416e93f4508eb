"""Log probabilities of prompt tokens, in slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rhizome_engine.sampling import prompt_logprobs
from rhizome_engine.sampling.prompt_logprobs import score_prompt


def test_scores_are_those_of_all_logits_at_once_however_they_are_sliced(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(100, 8, generator=generator), torch.randn(8, 500, generator=generator)
    targets = np.random.default_rng(0).integers(0, 500, 100)
    monkeypatch.setattr(prompt_logprobs, "_MAX_BYTES", 7 * 2 * 500 * 4)
    sizes = []

    def logits_of(part):
        sizes.append(len(part))
        return part @ head

    scores = score_prompt(hidden, logits_of, targets, 3)
    assert sizes == [32, *[7] * 9, 5]
    expected = (hidden @ head).double().log_softmax(dim=-1)
    best = expected.topk(3)
    for index, score in enumerate(scores):
        assert score.logprob == pytest.approx(expected[index, targets[index]].item(), abs=1e-4)
        assert [token for token, _ in score.top] == best.indices[index].tolist()
        assert [value for _, value in score.top] == pytest.approx(best.values[index].tolist(), abs=1e-4)


def test_no_rivals_and_no_targets():
    def logits_of(part):
        return part.expand(-1, 4)

    (score,) = score_prompt(torch.zeros(1, 1), logits_of, np.array([2]), 0)
    assert score.top == [] and score.logprob == pytest.approx(np.log(0.25))
    assert score_prompt(torch.zeros(0, 1), logits_of, np.array([], np.int64), 0) == []


def test_a_long_prompt_of_a_large_vocabulary_needs_no_more_than_the_limit():
    largest = 0

    def logits_of(part):
        nonlocal largest
        logits = torch.zeros(len(part), 128_256)
        largest = max(largest, logits.nbytes)
        return logits

    score_prompt(torch.zeros(150, 1), logits_of, np.zeros(150, np.int64), 0)
    assert largest <= 32 * 2**20
