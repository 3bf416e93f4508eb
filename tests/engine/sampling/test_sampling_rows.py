"""Settings are written once per request and picked by indexing, whatever the batch."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.sampling.reference import bits_of

from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.sampling.rows import SamplingRows

VOCAB = 70
int64 = np.int64


def build(rows, slots, positions):
    slots = np.array(slots, int64)
    return rows.build(np.arange(len(slots)), slots, np.array(positions, int64))


def biases_of(batch):
    """(row, token, amount) of a batch, in order."""
    if batch.biases is None:
        return []
    biases = batch.biases
    columns = (biases.rows.tolist(), biases.token_ids.tolist(), biases.amounts.tolist())
    return sorted(zip(*columns, strict=True))


def test_a_batch_has_the_settings_of_its_slots_in_its_order():
    rows = SamplingRows(4, VOCAB)
    rows.set(3, SamplingParams(temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, top_logprobs=2), -1, 11)
    rows.set(
        1,
        SamplingParams(repetition_penalty=1.5, frequency_penalty=0.25, presence_penalty=-0.5),
        2**63 + 1,
        22,
    )
    batch = build(rows, [1, 3], [30, 40])
    assert batch.slots.tolist() == [1, 3] and batch.positions.tolist() == [30, 40]
    assert batch.rows.tolist() == [0, 1] and batch.num_prompt.tolist() == [22, 11]
    assert batch.seeds.dtype == np.uint64 and batch.seeds.tolist() == [2**63 + 1, 2**64 - 1]
    assert batch.temperature.dtype == np.float32 and batch.temperature.tolist() == [1.0, 0.5]
    assert batch.top_k.tolist() == [0, 7] and batch.top_logprobs.tolist() == [-1, 2]
    assert batch.top_p.tolist() == [1.0, np.float32(0.9)] and batch.min_p.tolist() == [0.0, np.float32(0.1)]
    assert batch.repetition_penalty.tolist() == [1.5, 1.0]
    assert batch.frequency_penalty.tolist() == [0.25, 0.0]
    assert batch.presence_penalty.tolist() == [-0.5, 0.0]
    assert batch.biases is None and batch.allowed is None and batch.bad_words is None


def test_a_batch_is_not_changed_by_what_comes_later():
    """A step may still be computed while the next one is prepared."""
    rows = SamplingRows(2, VOCAB)
    rows.set(0, SamplingParams(logit_bias={3: 1.0}, allowed_token_ids=(1,)), 5, 1)
    before = build(rows, [0], [1])
    rows.set(0, SamplingParams(temperature=0.0, logit_bias={4: 2.0}, allowed_token_ids=(2,)), 6, 2)
    build(rows, [0], [2])
    assert (before.temperature[0], before.seeds[0], before.num_prompt[0]) == (1.0, 5, 1)
    assert biases_of(before) == [(0, 3, 1.0)]
    assert before.allowed.bits.tolist() == [bits_of([1], VOCAB).tolist()]


def test_stop_tokens_are_banned_below_min_tokens_and_only_there():
    rows = SamplingRows(3, VOCAB)
    rows.set(0, SamplingParams(logit_bias={5: 1.0}), 0, 10, [5, 6, VOCAB], 2)
    rows.set(1, SamplingParams(), 0, 10, [7], 5)
    rows.set(2, SamplingParams(), 0, 10, [8], 0)
    ban = -np.inf
    assert biases_of(build(rows, [0, 1, 2], [11, 10, 10])) == [
        (0, 5, ban),
        (0, 5, 1.0),
        (0, 6, ban),
        (1, 7, ban),
    ]
    assert biases_of(build(rows, [0, 1, 2], [12, 11, 11])) == [(0, 5, 1.0), (1, 7, ban)]
    assert biases_of(build(rows, [0, 1, 2], [13, 15, 12])) == [(0, 5, 1.0)]
    assert build(rows, [2, 1], [13, 15]).biases is None


def test_bad_words_of_one_token_are_bans_and_longer_ones_have_prefixes_as_long_as_needed():
    rows = SamplingRows(2, VOCAB)
    rows.set(1, SamplingParams(bad_words=((9,), (1, 2), (3, 4, 5))), 0, 1)
    batch = build(rows, [0, 1], [1, 1])
    assert biases_of(batch) == [(1, 9, -np.inf)]
    assert batch.bad_words.rows.tolist() == [1, 1]
    assert batch.bad_words.prefixes.tolist() == [[-1, 1], [3, 4]]
    assert batch.bad_words.last.tolist() == [2, 5]


params = st.builds(
    SamplingParams,
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([1.0, -2.0]), max_size=3),
    allowed_token_ids=st.none() | st.sets(st.integers(0, VOCAB - 1), min_size=1).map(tuple),
    bad_words=st.lists(
        st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4).map(tuple), max_size=3
    ).map(tuple),
)
admissions = st.tuples(st.just("set"), st.integers(0, 4), params, st.integers(0, 3))
departures = st.tuples(st.just("clear"), st.integers(0, 4))
steps = st.tuples(st.just("step"), st.lists(st.integers(0, 4), unique=True))


@settings(max_examples=150, deadline=None)
@given(st.lists(admissions | departures | steps, max_size=20))
def test_any_history_of_slots_gives_what_plain_dictionaries_give(history):
    rows, held, position = SamplingRows(5, VOCAB), {}, 0
    for action, *what in history:
        if action == "set":
            slot, given, min_tokens = what
            rows.set(slot, given, 1, position, [1, 2], min_tokens)
            held[slot] = (given, position, min_tokens)
        elif action == "clear":
            rows.clear(what[0])
            held.pop(what[0], None)
        else:
            slots = [slot for slot in what[0] if slot in held]
            batch = build(rows, slots, [position] * len(slots))
            position += 1
            expected_biases, expected_words, expected_masks = [], [], {}
            for row, slot in enumerate(slots):
                given, start, min_tokens = held[slot]
                expected_biases += [(row, token, amount) for token, amount in given.logit_bias.items()]
                expected_biases += [(row, word[0], -np.inf) for word in given.bad_words if len(word) == 1]
                if batch.positions[row] - start < min_tokens:
                    expected_biases += [(row, 1, -np.inf), (row, 2, -np.inf)]
                expected_words += [(row, word) for word in given.bad_words if len(word) > 1]
                if given.allowed_token_ids is not None:
                    expected_masks[row] = bits_of(given.allowed_token_ids, VOCAB).tolist()
            assert biases_of(batch) == sorted(expected_biases)
            words, masks = [], {}
            if batch.bad_words is not None:
                for row, prefix, last in zip(
                    batch.bad_words.rows, batch.bad_words.prefixes, batch.bad_words.last, strict=True
                ):
                    words.append((row, (*prefix[prefix >= 0].tolist(), last)))
            if batch.allowed is not None:
                assert (np.diff(batch.allowed.rows) > 0).all()
                masks = dict(zip(batch.allowed.rows.tolist(), batch.allowed.bits.tolist(), strict=True))
            assert sorted(words) == sorted(expected_words)
            assert masks == expected_masks


@pytest.mark.parametrize("name", ["logit_bias", "allowed_token_ids", "bad_words"])
def test_a_token_outside_of_the_vocabulary_is_refused_by_name_and_changes_nothing(name):
    value = {"logit_bias": {VOCAB: 1.0}, "allowed_token_ids": (1, VOCAB), "bad_words": ((1, VOCAB),)}[name]
    rows = SamplingRows(1, VOCAB)
    rows.set(0, SamplingParams(logit_bias={3: 1.0}, temperature=0.5), 0, 1)
    with pytest.raises(ValueError, match=f"^{name}: token id {VOCAB} is outside the vocabulary of {VOCAB}"):
        rows.set(0, SamplingParams(**{name: value}), 0, 1)
    batch = build(rows, [0], [1])
    assert batch.temperature.tolist() == [0.5] and biases_of(batch) == [(0, 3, 1.0)]


def python_events(call):
    """How many calls and lines of Python a function takes."""
    count = 0

    def trace(_frame, _event, _argument):
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("given", [{}, {"logit_bias": {3: 1.0, 4: 2.0}, "bad_words": ((1, 2), (3,))}])
def test_python_does_not_run_per_row(given):
    counts = []
    for number in (2, 200):
        rows = SamplingRows(number, VOCAB)
        for slot in range(number):
            rows.set(slot, SamplingParams(**given), slot, 1, [5], 3)
        slots, positions = np.arange(number), np.full(number, 9)
        rows.build(slots, slots, positions)
        counts.append(python_events(lambda r=rows, s=slots, p=positions: r.build(s, s, p)))
    assert 0 < counts[0] == counts[1]
