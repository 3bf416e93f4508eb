"""The sampler against a reference written out with loops, and what users rely on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.sampling.reference import Row, reference_probabilities, sample_rows

from rhizome_engine.batch import NO_TOKEN
from rhizome_engine.sampling.counter_rng import exponentials, keys
from rhizome_engine.sampling.params import SamplingParams

VOCAB = 50
GREEDY = SamplingParams(temperature=0.0)


def normal_logits(count, vocab_size=VOCAB, seed=0, spread=2.5):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, spread, (count, vocab_size))).float()


def times_of(row, vocab_size=VOCAB):
    """When each token would arrive if all had probability 1."""
    seed = torch.tensor([[row.seed - 2**64 if row.seed >= 2**63 else row.seed]])
    row_key = keys(seed, torch.tensor([[len(row.prompt + row.output)]]))
    return exponentials(row_key, torch.arange(vocab_size))[0].double().tolist()


def assert_wins_the_race(token, probabilities, times, slack=1e-4):
    """No token that may come is faster, up to float32 rounding."""
    assert probabilities[token] > 0
    speeds = [probability / time for probability, time in zip(probabilities, times, strict=True)]
    assert speeds[token] >= (1 - slack) * max(speeds)


token_ids = st.integers(0, VOCAB - 1)
few_tokens = st.integers(0, 5)  # so that sequences repeat
params_of_rows = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-4, 0.3, 1.0, 2.5]),
    top_p=st.sampled_from([1.0, 0.93, 0.51, 1e-3]),
    top_k=st.sampled_from([0, 1, 3, 17, 10_000]),
    min_p=st.sampled_from([0.0, 0.037, 0.71, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    frequency_penalty=st.sampled_from([0.0, 0.7, -0.2]),
    presence_penalty=st.sampled_from([0.0, 1.1]),
    logit_bias=st.dictionaries(token_ids, st.sampled_from([-100.0, -1.5, 2.0]), max_size=3),
    allowed_token_ids=st.none() | st.sets(token_ids, min_size=1, max_size=VOCAB).map(tuple),
    bad_words=st.lists(st.lists(few_tokens, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
)
rows_of_a_batch = st.lists(
    st.builds(
        Row,
        params_of_rows,
        seed=st.integers(0, 2**64 - 1),
        prompt=st.lists(few_tokens, min_size=1, max_size=8),
        output=st.lists(few_tokens | token_ids, max_size=8),
        stop_ids=st.lists(token_ids, max_size=2),
        min_tokens=st.integers(0, 6),
        grammar=st.none() | st.sets(token_ids).map(sorted),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(rows_of_a_batch, st.integers(0, 2**32 - 1))
def test_equals_the_reference_for_any_mix_of_settings(rows, seed):
    logits = normal_logits(len(rows), seed=seed)
    tokens, logprobs = sample_rows(logits, rows, logprobs=True)
    assert logprobs == [None] * len(rows)
    for index, row in enumerate(rows):
        probabilities = reference_probabilities(logits[index], row)
        if probabilities is None:
            assert tokens[index] == NO_TOKEN
        elif row.params.greedy:
            assert probabilities[tokens[index]] == 1.0
        else:
            assert_wins_the_race(tokens[index], probabilities, times_of(row))


@settings(max_examples=80, deadline=None)
@given(rows_of_a_batch, st.randoms(use_true_random=False), st.sampled_from([VOCAB, 300, 9000, 9216]))
def test_a_row_draws_the_same_token_alone_and_anywhere_in_a_batch(rows, random, vocab_size):
    rows = rows + [Row(row.params, seed=row.seed + 1, prompt=[3]) for row in rows]
    logits = normal_logits(len(rows), vocab_size, seed=1)
    alone = [sample_rows(logits[index : index + 1], [row])[0] for index, row in enumerate(rows)]
    order = list(range(len(rows)))
    random.shuffle(order)
    padded = [*order, *order[:1] * random.randrange(12)]  # copies of a row, with slots of their own
    slots = random.sample(range(40), len(padded))
    together = sample_rows(logits[padded], [rows[index] for index in padded], slots=slots)
    assert together == [alone[index] for index in padded]


def test_each_position_of_a_request_draws_anew():
    rows = [Row(SamplingParams(), seed=1, position=position) for position in range(60)]
    assert len(set(sample_rows(torch.zeros(60, VOCAB), rows))) > VOCAB // 2


def test_top_k_1_is_greedy_even_among_equals():
    logits = torch.zeros(20, VOCAB)
    logits[:, [9, 4, 30]] = 5.0
    drawn = sample_rows(logits, [Row(SamplingParams(top_k=1), seed=seed) for seed in range(20)])
    assert set(drawn) == {4} == set(sample_rows(logits, [Row(GREEDY)] * 20))


@pytest.mark.parametrize("vocab_size", [3, 255, 256, 1000, 49_152])
def test_greedy_takes_the_first_of_the_largest(vocab_size):
    logits = normal_logits(40, vocab_size).round()
    expected = [int(np.argmax(row)) for row in logits.numpy()]
    assert sample_rows(logits, [Row(GREEDY)] * 40) == expected


@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-45, 1e-300])
def test_the_smallest_temperatures_are_greedy_and_do_not_overflow(temperature):
    logits = torch.tensor([[9999.0, -1e4, 1e4, 9998.0]]).expand(3, -1)
    rows = [
        Row(SamplingParams(temperature=temperature, **more)) for more in ({}, {"top_k": 3}, {"top_p": 0.9})
    ]
    assert sample_rows(logits, rows) == [2, 2, 2]


KINDS = {
    "greedy": GREEDY,
    "unfiltered": SamplingParams(),
    "top_p": SamplingParams(top_p=0.5),
    "top_k": SamplingParams(top_k=20),
    "large_top_k": SamplingParams(top_k=1000, min_p=0.1),
    "penalised": SamplingParams(frequency_penalty=1.0, repetition_penalty=2.0),
}


@pytest.mark.parametrize("vocab_size", [VOCAB, 10_000])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [math.nan, -math.inf, math.inf, "one nan"])
def test_a_row_without_a_choice_gives_no_token_and_harms_no_other(wrong, kind, vocab_size):
    rows = [Row(KINDS[kind], seed=seed, output=[1, 2]) for seed in range(3)]
    logits = normal_logits(3, vocab_size)
    expected = sample_rows(logits, rows)
    assert NO_TOKEN not in expected
    if wrong == "one nan":
        logits[1, vocab_size - 7] = math.nan
    else:
        logits[1] = wrong
    assert sample_rows(logits, rows) == [expected[0], NO_TOKEN, expected[2]]


def test_a_grammar_and_a_list_of_allowed_tokens_that_share_none_leave_no_choice():
    allowed = SamplingParams(allowed_token_ids=(1, 2, 3))
    rows = [Row(allowed, grammar=[3, 4]), Row(allowed, grammar=[4, 5]), Row(allowed)]
    tokens, logprobs = sample_rows(torch.zeros(3, VOCAB), rows, logprobs=True)
    assert tokens[:2] == [3, NO_TOKEN]
    assert tokens[2] in (1, 2, 3)
    assert logprobs == [None] * 3


def test_stop_tokens_are_banned_until_the_output_is_long_enough():
    logits = torch.zeros(1, VOCAB)
    logits[0, 7], logits[0, 9] = 2.0, 1.0
    lengths = {
        length: sample_rows(logits, [Row(GREEDY, output=[1] * length, stop_ids=[7, VOCAB + 3], min_tokens=2)])
        for length in range(4)
    }
    assert lengths == {0: [9], 1: [9], 2: [7], 3: [7]}


def test_a_bad_word_is_avoided_where_its_beginning_lies_in_the_prompt():
    params = SamplingParams(temperature=0.0, bad_words=((5, 6, 7), (8,)))
    logits = torch.zeros(1, VOCAB)
    logits[0, 8], logits[0, 7], logits[0, 9] = 3.0, 2.0, 1.0
    for prompt, output, expected in [
        ([5], [6], 9),
        ([1, 5, 6], [], 9),
        ([5, 6], [1], 7),
        ([6], [], 7),
        ([6], [5], 7),
    ]:
        assert sample_rows(logits, [Row(params, prompt=prompt, output=output)]) == [expected]


def test_penalties_count_the_output_only_but_repetition_the_prompt_as_well():
    logits = torch.tensor([[3.0, 2.0, -1.0, -1.5]])

    def chosen(prompt, output, **settings):
        params = SamplingParams(temperature=0.0, **settings)
        return sample_rows(logits, [Row(params, prompt=prompt, output=output)])[0]

    assert chosen([0, 0], [], frequency_penalty=5.0, presence_penalty=5.0) == 0
    assert chosen([1], [0, 0], frequency_penalty=0.4) == 0
    assert chosen([1], [0, 0], frequency_penalty=0.6) == 1
    assert chosen([1], [0, 0], presence_penalty=0.9) == 0
    assert chosen([1], [0, 0], presence_penalty=1.1) == 1
    assert chosen([0], [], repetition_penalty=2.0) == 1
    assert chosen([0, 0, 1], [], repetition_penalty=2.0, allowed_token_ids=(2, 3)) == 2
    assert chosen([0, 2, 1], [], repetition_penalty=2.0, allowed_token_ids=(2, 3)) == 3


def test_what_the_table_holds_beyond_a_rows_tokens_does_not_matter():
    """A slot that is taken over still has its last occupant's tokens."""
    params = SamplingParams(
        temperature=0.0, frequency_penalty=5.0, repetition_penalty=9.0, bad_words=((4, 4, 2),)
    )
    logits = torch.zeros(3, VOCAB)
    logits[:, 2], logits[:, 3] = 1.0, 0.5
    rows = [
        Row(params, prompt=[1], output=[2, 4, 4], position=1),
        Row(params, prompt=[1, 3, 4, 4]),
        Row(params, prompt=[4]),  # not a 4 that came twice
    ]
    assert sample_rows(logits, rows) == [2, 3, 2]


def test_logprobs_are_those_of_the_model_before_any_setting():
    logits = normal_logits(4, 5000, seed=2)
    biased = SamplingParams(temperature=0.0, logit_bias={7: 100.0}, repetition_penalty=5.0, top_logprobs=20)
    rows = [
        Row(biased, prompt=[7, 8]),
        Row(SamplingParams(temperature=0.5)),
        Row(SamplingParams(top_logprobs=0)),
        Row(SamplingParams(top_logprobs=128, top_p=0.1), grammar=[]),
    ]
    tokens, logprobs = sample_rows(logits, rows, logprobs=True)
    expected = logits.double().log_softmax(dim=-1)
    assert tokens[0] == 7
    first, second, third, fourth = logprobs
    assert first.logprob == pytest.approx(expected[0, 7].item(), abs=1e-5)
    best = expected[0].topk(20)
    assert [token for token, _ in first.top] == best.indices.tolist()
    assert [value for _, value in first.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert second is None
    assert third.top == []
    assert third.logprob == pytest.approx(expected[2, tokens[2]].item(), abs=1e-5)
    assert tokens[3] == NO_TOKEN and fourth is None


def test_rivals_of_equal_probability_are_ordered_by_token_and_number_no_more_than_the_vocabulary():
    rows = [Row(SamplingParams(temperature=0.0, top_logprobs=100))]
    _, (entry,) = sample_rows(torch.zeros(1, VOCAB), rows, logprobs=True)
    assert [token for token, _ in entry.top] == list(range(VOCAB))


def test_no_rows_give_no_tokens():
    assert sample_rows(torch.empty(0, VOCAB), [], slots=[]) == []


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.8, top_p=0.95)])
def test_rounding_of_the_logits_hardly_ever_changes_a_token(params):
    """Batches of other shapes round otherwise; inverting a distribution would change 38 and 7 tokens here."""
    rows = [Row(params, seed=seed) for seed in range(4000)]
    logits = normal_logits(len(rows), 1000, seed=3)
    noise = torch.from_numpy(np.random.default_rng(4).normal(0, 3e-4, logits.shape)).float()
    before, after = sample_rows(logits.clone(), rows), sample_rows(logits + noise, rows)
    assert sum(one != other for one, other in zip(before, after, strict=True)) <= 1
