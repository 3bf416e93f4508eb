"""What is drawn has the distribution that a plain reference computes, filter by filter.

Seeds are fixed, so a chi-square that is right stays right. A p-value below one in a million never happened.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.engine.sampling.reference import Row, reference_probabilities, sample_rows

from rhizome_engine.sampling.params import SamplingParams

DRAWS = 10_000
VOCAB = 40

CASES = {
    "temperature 1": {},
    "temperature 0.6": {"temperature": 0.6},
    "temperature 3": {"temperature": 3.0},
    "top-k": {"top_k": 7},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.08},
    "repetition penalty": {"repetition_penalty": 1.7},
    "frequency penalty": {"frequency_penalty": 0.6},
    "presence penalty": {"presence_penalty": 1.3},
    "bias": {"logit_bias": {3: 2.0, 11: -1.0, 20: -100.0}},
    "allowed tokens": {"allowed_token_ids": (0, 3, 5, 31, 32, 39)},
    "bad words": {"bad_words": ((2,), (6, 3), (1, 6, 11), (7, 8))},
    "all filters": {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.03},
    "penalties, then filters": {
        "repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.4, "top_p": 0.85,
    },
    "everything": {
        "temperature": 1.4, "top_k": 12, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.3,
        "presence_penalty": 0.5, "frequency_penalty": -0.2, "logit_bias": {4: 3.0, 9: -2.0},
        "allowed_token_ids": tuple(range(0, 40, 2)), "bad_words": ((2,), (6, 10)),
    },
}  # fmt: skip


def assert_drawn_from(probabilities, tokens):
    """Pearson's test; the limit is the chi-square of p = 1e-6, by Wilson and Hilferty's approximation."""
    expected = np.array(probabilities) * len(tokens)
    counts = np.bincount(tokens, minlength=len(expected))
    assert counts[expected == 0].sum() == 0
    # Tokens that are expected seldom are counted together: the test holds for 5 and more.
    seldom = (expected > 0) & (expected < 5)
    often = expected >= 5
    observed = np.append(counts[often], counts[seldom].sum())
    wanted = np.append(expected[often], expected[seldom].sum())
    if wanted[-1] < 5:
        observed, wanted = observed[:-1], wanted[:-1]
        assert counts[seldom].sum() < 30
    freedom = len(wanted) - 1
    assert freedom >= 2, "too few tokens for a test"
    limit = freedom * (1 - 2 / (9 * freedom) + 4.7534 * np.sqrt(2 / (9 * freedom))) ** 3
    assert ((observed - wanted) ** 2 / wanted).sum() < limit


def draw(logits, params, number=DRAWS):
    """Tokens of one distribution with many seeds."""
    tokens = []
    for start in range(0, number, 1000):
        rows = [
            Row(params, seed=seed, prompt=[1, 1, 5], output=[2, 3, 3, 9, 1, 6])
            for seed in range(start, min(start + 1000, number))
        ]
        tokens += sample_rows(logits.expand(len(rows), -1), rows, max_context=16)
    return tokens, reference_probabilities(logits[0], rows[0])


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_reference(case):
    logits = torch.from_numpy(np.random.default_rng(5).normal(0, 1.3, (1, VOCAB))).float()
    tokens, probabilities = draw(logits, SamplingParams(**CASES[case]))
    assert_drawn_from(probabilities, tokens)


@pytest.mark.parametrize("case", ["temperature 3", "top-p", "top-k", "min-p"])
def test_the_check_notices_a_slightly_different_setting(case):
    logits = torch.from_numpy(np.random.default_rng(5).normal(0, 1.3, (1, VOCAB))).float()
    other = {"temperature": 2.0} if case == "temperature 3" else {"top_p": 0.7, "temperature": 0.9}
    tokens, _ = draw(logits, SamplingParams(**{**CASES[case], **other}))
    _, probabilities = draw(logits, SamplingParams(**CASES[case]), 1)
    with pytest.raises(AssertionError):
        assert_drawn_from(probabilities, tokens)


@pytest.mark.parametrize(
    "settings", [{}, {"top_p": 0.9}, {"top_k": 700}, {"top_k": 900, "top_p": 0.9, "min_p": 0.1}]
)
def test_draws_from_a_large_and_flat_vocabulary_follow_the_reference(settings):
    """Here the survivors do not lie among the candidates. Tokens are counted in 20 bins."""
    logits = torch.from_numpy(np.random.default_rng(6).normal(0, 1.0, (1, 1200))).float()
    tokens, probabilities = draw(logits, SamplingParams(**settings), 4000)
    assert min(probabilities[token] for token in tokens) > 0
    binned = np.array(probabilities).reshape(20, -1).sum(axis=1)
    assert_drawn_from(binned, np.array(tokens) // 60)
