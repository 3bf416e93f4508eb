"""The sampler against a reference written out with loops, and what users rely on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome_engine.batch import SampleRow
from rhizome_engine.sampling.counter_rng import uniforms
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.sampling.sampler import sample

VOCAB = 50


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_row(params, *, position=0, seed=0, prompt=(), output=(), banned=()):
    return SampleRow(0, params, position, seed, list(prompt), list(output), tuple(banned))


def reference_probabilities(logits, row):
    """The distribution a row is drawn from, in float64, one token at a time."""
    params = row.params
    logits = [float(value) for value in logits]
    for token in range(len(logits)):
        if token in row.prompt_ids or token in row.output_ids:
            scale = params.repetition_penalty
            logits[token] = logits[token] / scale if logits[token] > 0 else logits[token] * scale
        count = row.output_ids.count(token)
        if count:
            logits[token] -= params.frequency_penalty * count + params.presence_penalty
        logits[token] += params.logit_bias.get(token, 0.0)
        if token in row.banned_ids:
            logits[token] = -math.inf
    if params.greedy:
        best = max(range(len(logits)), key=lambda token: (logits[token], -token))
        return [float(token == best) for token in range(len(logits))]
    top = max(logits)
    probs = [math.exp((value - top) / params.temperature) for value in logits]
    order = sorted(range(len(probs)), key=lambda token: (-probs[token], token))
    kept = order[: params.top_k or len(order)]
    total = sum(probs[token] for token in kept)
    nucleus, reached = [], 0.0
    for token in kept:
        if nucleus and params.top_p < 1.0 and reached >= params.top_p * total:
            break
        nucleus.append(token)
        reached += probs[token]
    survivors = {token for token in nucleus if probs[token] >= params.min_p * probs[order[0]]}
    total = sum(probs[token] for token in survivors)
    return [probs[token] / total if token in survivors else 0.0 for token in range(len(probs))]


def assert_is_the_inverse(token, probabilities, number, slack=1e-5):
    """The token's interval of the cumulative distribution holds the number, up to float32 rounding."""
    assert probabilities[token] > 0
    before = sum(probabilities[:token])
    assert before - slack <= number <= before + probabilities[token] + slack


settings_of_rows = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-4, 0.3, 1.0, 2.5]),
    top_p=st.sampled_from([1.0, 0.93, 0.51, 1e-3]),
    top_k=st.sampled_from([0, 1, 3, 17, 10_000]),
    min_p=st.sampled_from([0.0, 0.037, 0.71, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    frequency_penalty=st.sampled_from([0.0, 0.7, -0.2]),
    presence_penalty=st.sampled_from([0.0, 1.1]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-100.0, -1.5, 2.0]), max_size=3),
)
tokens = st.lists(st.integers(0, VOCAB - 1), max_size=8)
rows_of_a_batch = st.lists(
    st.builds(
        make_row,
        settings_of_rows,
        position=st.integers(0, 5000),
        seed=st.integers(0, 2**64 - 1),
        prompt=tokens,
        output=tokens,
        banned=st.lists(st.integers(0, VOCAB - 1), max_size=2),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(rows_of_a_batch, st.integers(0, 2**32 - 1))
def test_equals_the_reference_for_any_mix_of_settings(rows, seed):
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 2.5, (len(rows), VOCAB))).float()
    before = logits.clone()
    output = sample(logits, rows)
    assert torch.equal(logits, before)
    for index, row in enumerate(rows):
        probabilities = reference_probabilities(logits[index], row)
        number = uniforms([row.seed], [row.position])[0]
        if not row.params.greedy:
            assert_is_the_inverse(output.token_ids[index], probabilities, number)
        else:
            assert probabilities[output.token_ids[index]] == 1.0
        assert output.logprobs[index] is None


@settings(max_examples=50, deadline=None)
@given(rows_of_a_batch, st.randoms(use_true_random=False))
def test_a_row_draws_the_same_token_alone_and_anywhere_in_a_batch(rows, random):
    logits = torch.from_numpy(np.random.default_rng(1).normal(0, 2.5, (len(rows), VOCAB))).float()
    alone = [sample(logits[index : index + 1], [row]).token_ids[0] for index, row in enumerate(rows)]
    order = list(range(len(rows)))
    random.shuffle(order)
    together = sample(logits[order], [rows[index] for index in order]).token_ids
    assert together == [alone[index] for index in order]


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0, -1.0, 1.5]])
    params = SamplingParams(temperature=0.9, top_k=5, top_p=0.97)
    rows = [make_row(params, seed=seed, position=11) for seed in range(20_000)]
    counts = np.bincount(sample(logits.expand(len(rows), -1), rows).token_ids, minlength=6)
    expected = np.array(reference_probabilities(logits[0], rows[0])) * len(rows)
    drawn = expected > 0
    assert counts[~drawn].sum() == 0
    assert (
        (counts[drawn] - expected[drawn]) ** 2 / expected[drawn]
    ).sum() < 20  # at most 5 degrees of freedom


def test_each_position_of_a_request_draws_anew():
    rows = [make_row(SamplingParams(), seed=1, position=position) for position in range(200)]
    assert len(set(sample(torch.zeros(200, VOCAB), rows).token_ids)) > VOCAB // 2


def test_top_k_1_is_greedy_even_among_equals():
    logits = torch.zeros(1, VOCAB)
    logits[0, [9, 4, 30]] = 5.0
    drawn = {
        sample(logits, [make_row(SamplingParams(top_k=1), seed=seed)]).token_ids[0] for seed in range(20)
    }
    assert drawn == {4} == {sample(logits, [make_row(SamplingParams(temperature=0.0))]).token_ids[0]}


def test_the_smallest_temperature_does_not_overflow():
    logits = torch.tensor([[1e4, -1e4, 9999.0]])
    assert sample(logits, [make_row(SamplingParams(temperature=1e-30))]).token_ids == [0]


def test_logits_that_are_no_numbers_still_give_a_token_of_the_vocabulary():
    rows = [
        make_row(SamplingParams()),
        make_row(SamplingParams(top_p=0.5)),
        make_row(SamplingParams(temperature=0.0)),
    ]
    assert all(0 <= token < VOCAB for token in sample(torch.full((3, VOCAB), math.nan), rows).token_ids)


def test_banned_tokens_are_never_drawn():
    rows = [make_row(SamplingParams(), seed=seed, banned=range(1, VOCAB)) for seed in range(50)]
    assert set(sample(torch.zeros(50, VOCAB), rows).token_ids) == {0}


def test_logprobs_are_those_of_the_model_before_any_setting():
    logits = torch.from_numpy(np.random.default_rng(2).normal(0, 2, (3, VOCAB))).float()
    biased = SamplingParams(temperature=0.0, logit_bias={7: 100.0}, top_logprobs=3)
    rows = [
        make_row(biased),
        make_row(SamplingParams(temperature=0.5)),
        make_row(SamplingParams(top_logprobs=0)),
    ]
    output = sample(logits, rows)
    expected = logits.double().log_softmax(dim=-1)
    assert output.token_ids[0] == 7
    first, second, third = output.logprobs
    assert first.logprob == pytest.approx(expected[0, 7].item(), abs=1e-5)
    best = expected[0].topk(3)
    assert [token for token, _ in first.top] == best.indices.tolist()
    assert [value for _, value in first.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert second is None
    assert third.top == []
    assert third.logprob == pytest.approx(expected[2, output.token_ids[2]].item(), abs=1e-5)


def test_no_rows_give_no_tokens():
    assert sample(torch.empty(0, VOCAB), []).token_ids == []


def test_a_bias_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="token id 50 is outside the vocabulary of 50"):
        sample(torch.zeros(1, VOCAB), [make_row(SamplingParams(logit_bias={VOCAB: 1.0}))])


def test_a_temperature_too_small_for_float32_is_greedy():
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(3))
    (token,) = sample(logits, [make_row(SamplingParams(temperature=1e-300))]).token_ids
    assert token == int(logits.argmax())
