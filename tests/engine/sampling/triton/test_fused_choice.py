"""Kernels choose the tokens that PyTorch's operations choose, whatever the rows' settings are."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.sampling.reference import Row, reference_probabilities
from tests.engine.sampling.test_distributions import assert_drawn_from
from tests.engine.sampling.triton.fused import DEVICE, Scene, assert_same

from rhizome_engine.batch import NO_TOKEN
from rhizome_engine.sampling.device_sampling import DeviceMasks
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.sampling.staging import to_device
from rhizome_engine.sampling.static_choice import _choose_in_torch, choose_tokens

GREEDY = SamplingParams(temperature=0.0)
ON_GPU = DEVICE.type == "cuda"


def normal_logits(count, vocab_size, seed=0, spread=2.5):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, spread, (count, vocab_size))).float()


few_tokens = st.integers(0, 5)
params_of_rows = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-6, 0.7, 1.0, 2.5]),
    top_p=st.sampled_from([1.0, 0.9, 0.51, 1e-3]),
    top_k=st.sampled_from([0, 1, 3, 17, 300, 10_000]),
    min_p=st.sampled_from([0.0, 0.037, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    frequency_penalty=st.sampled_from([0.0, 0.7, -0.2]),
    presence_penalty=st.sampled_from([0.0, 1.1]),
    logit_bias=st.dictionaries(few_tokens, st.sampled_from([-100.0, 2.0]), max_size=2),
    allowed_token_ids=st.none() | st.sets(st.integers(0, 256), min_size=1, max_size=40).map(tuple),
    bad_words=st.lists(st.lists(few_tokens, min_size=1, max_size=2).map(tuple), max_size=2).map(tuple),
)
rows_of_a_batch = st.lists(
    st.builds(
        Row,
        params_of_rows,
        seed=st.integers(0, 2**64 - 1),
        prompt=st.lists(few_tokens, min_size=1, max_size=8),
        output=st.lists(few_tokens, max_size=8),
        grammar=st.none() | st.sets(st.integers(0, 256)).map(sorted),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=200 if ON_GPU else 9)
@given(
    rows_of_a_batch,
    st.sampled_from([257, 1000, 4099]),
    st.sampled_from([0.1, 1.0, 4.0]),
    st.sampled_from([None, 0, 1]),
    st.integers(0, 2**32 - 1),
)
def test_any_mix_of_settings_chooses_as_pytorch_does(rows, vocab_size, spread, decimals, seed):
    logits = normal_logits(len(rows), vocab_size, seed, spread)
    if decimals is not None:  # many equal logits
        logits = logits.round(decimals=decimals)
    assert_same(logits, rows)


FILTERS = list(itertools.product([0, 5, 33, 5000], [1.0, 0.9, 0.2], [0.0, 0.05]))


@pytest.mark.parametrize("spread", [0.1, 4.0])
def test_every_combination_of_filters_chooses_as_pytorch_does(spread):
    filters = FILTERS if ON_GPU or spread > 1 else FILTERS[::6]
    rows = [
        Row(SamplingParams(temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p), seed=seed)
        for seed, (top_k, top_p, min_p) in enumerate(filters)
    ]
    logits = normal_logits(len(rows), 4099, seed=7, spread=spread)
    assert len(set(assert_same(logits, rows))) > 2


@pytest.mark.parametrize("filters", [{"top_p": 0.6}, {"top_k": 9}, {"top_k": 20, "top_p": 0.7, "min_p": 0.4}])
def test_tokens_follow_the_reference(filters):
    """20,000 draws on a GPU. An interpreter does few; they are those of PyTorch, which many tests count."""
    params = SamplingParams(temperature=1.3, **filters)
    count = 20_000 if ON_GPU else 12
    logits = normal_logits(1, 300, seed=5, spread=1.0)
    rows = [Row(params, seed=seed) for seed in range(count)]
    tokens = assert_same(logits.expand(count, -1), rows)
    probabilities = reference_probabilities(logits[0], rows[0])
    assert all(probabilities[token] > 0 for token in tokens)
    if ON_GPU:
        assert_drawn_from(probabilities, tokens)


def test_a_row_draws_the_same_token_anywhere_in_a_batch_and_padding_changes_nothing():
    kinds = [GREEDY, SamplingParams(), SamplingParams(top_p=0.8), SamplingParams(top_k=9, top_p=0.5)]
    rows = [Row(kinds[index % 4], seed=index) for index in range(6)]
    logits = normal_logits(6, 1000)
    expected, _, _ = Scene(rows, 1000).sample(logits, fused=True)
    order = [3, 0, 1, 5, 2, 4]
    scene = Scene([rows[index] for index in order], 1000, slots=order)
    assert scene.sample(logits[order], fused=True)[0] == [expected[index] for index in order]

    settings = scene.settings()
    padded = settings._replace(slots=settings.slots.where(settings.slots % 2 == 0, -1))
    table, before = scene.table(), scene.table().tokens.clone()
    tokens = choose_tokens(logits[order].to(DEVICE), padded, table)
    assert tokens.tolist() == [expected[index] if index % 2 == 0 else NO_TOKEN for index in order]
    for slot in range(6):
        before[slot, scene.known[0]] = expected[slot] if slot % 2 == 0 else 0
    assert torch.equal(table.tokens, before)


KINDS = [GREEDY, SamplingParams(), SamplingParams(top_p=0.5), SamplingParams(top_k=300, top_p=0.9)]


@pytest.mark.parametrize("wrong", [math.nan, -math.inf, math.inf, "one nan", "one inf"])
def test_a_row_without_a_choice_gives_no_token_and_harms_no_other(wrong):
    rows = [Row(kind, seed=seed) for kind in KINDS for seed in range(2)]
    logits = normal_logits(len(rows), 1000)
    if isinstance(wrong, str):
        logits[::2, 993] = float(wrong.removeprefix("one "))
    else:
        logits[::2] = wrong
    tokens = assert_same(logits, rows)
    assert tokens[::2] == [NO_TOKEN] * 4 and NO_TOKEN not in tokens[1::2]


def test_banned_tokens_are_never_read():
    """A grammar's mask covers NaN and whole blocks, and leaves one token or none."""
    logits = normal_logits(4, 1000)
    logits[:, 100:700] = math.nan
    rows = [
        Row(SamplingParams(top_p=0.9), grammar=[*range(100), *range(700, 1000)]),
        Row(SamplingParams(top_k=4, top_p=0.9), grammar=[999]),
        Row(GREEDY, grammar=[0, 31, 32]),
        Row(SamplingParams(), grammar=[]),
    ]
    tokens = assert_same(logits, rows)
    assert tokens[1] == 999 and tokens[3] == NO_TOKEN


def test_equal_logits_keep_their_order():
    logits = torch.zeros(8, 1000)
    logits[:, [9, 400, 930]] = 1.0
    kinds = [GREEDY, SamplingParams(top_k=1), SamplingParams(top_k=2), SamplingParams(top_k=4, top_p=0.999)]
    tokens = assert_same(logits, [Row(kinds[index % 4], seed=index) for index in range(8)])
    assert set(tokens[0::4] + tokens[1::4]) == {9}
    assert set(tokens[2::4]) <= {9, 400} and set(tokens[3::4]) <= {9, 400, 930, 0}


def test_a_recordable_choice_equals_the_sampler_for_any_type_of_logits():
    penalised = SamplingParams(temperature=0.5, repetition_penalty=1.4, frequency_penalty=0.3, top_k=30)
    rows = [Row(kind, seed=9, prompt=[1, 2, 2], output=[3, 3, 4]) for kind in (*KINDS, penalised)]
    rows[1].grammar = list(range(0, 1000, 3))
    logits = normal_logits(len(rows), 1000).bfloat16()
    scene = Scene(rows, 1000)
    expected, _, stored = scene.sample(logits.float(), fused=False)
    masks = DeviceMasks.of(to_device(DeviceMasks.arrays(scene.masks(), len(rows)), DEVICE))
    for choose in (choose_tokens, _choose_in_torch):
        for dtype in (torch.bfloat16, torch.float32):
            table = scene.table()
            given_logits = logits.to(
                DEVICE, torch.float32 if choose is _choose_in_torch else dtype, copy=True
            )
            tokens = choose(given_logits, scene.settings(), table, masks, penalties=True)
            assert tokens.tolist() == expected
            assert table.tokens.tolist() == stored


def test_log_probabilities_are_those_of_the_model_before_any_setting():
    logits = normal_logits(4, 5000, seed=2)
    biased = SamplingParams(temperature=0.0, logit_bias={7: 100.0}, repetition_penalty=5.0, top_logprobs=20)
    rows = [
        Row(biased, prompt=[7, 8]),
        Row(SamplingParams(temperature=0.5)),
        Row(SamplingParams(top_logprobs=0)),
        Row(SamplingParams(top_logprobs=128, top_p=0.1), grammar=[5]),
    ]
    scene = Scene(rows, 5000)
    (tokens, found, _), (same, expected, _) = (scene.sample(logits, fused=fused) for fused in (True, False))
    assert tokens == same and found[1] is None
    for entry, wanted in ((found[index], expected[index]) for index in (0, 2, 3)):
        assert entry.logprob == pytest.approx(wanted.logprob, abs=1e-5)
        assert [token for token, _ in entry.top] == [token for token, _ in wanted.top]
        assert [value for _, value in entry.top] == pytest.approx(
            [value for _, value in wanted.top], abs=1e-5
        )


def test_no_rows_give_no_tokens():
    assert assert_same(torch.empty(0, 50), [], slots=[]) == []
