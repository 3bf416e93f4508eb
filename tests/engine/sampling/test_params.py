"""Sampling settings refuse what is out of range."""

from __future__ import annotations

import math

import pytest

from rhizome_engine.sampling.params import SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("frequency_penalty", math.inf),
        ("top_logprobs", 129),
        ("bad_words", ((1,),) * 1025),
        ("allowed_token_ids", ()),
        ("allowed_token_ids", (3, -1)),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must "):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("word", [(), (1,) * 65, (5, -2)])
def test_a_bad_word_out_of_range_is_refused_with_its_place(word):
    with pytest.raises(ValueError, match=r"^bad_words\[1\] must "):
        SamplingParams(bad_words=((4,), word))


def test_a_bias_out_of_range_is_refused_with_its_token():
    with pytest.raises(ValueError, match=r"^logit_bias\[5\] must be in"):
        SamplingParams(logit_bias={5: 2000.0})
    with pytest.raises(ValueError, match=r"^logit_bias must hold token ids"):
        SamplingParams(logit_bias={-5: 1.0})


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({}, False),
        ({"logit_bias": {3: 1.0}, "allowed_token_ids": (3,), "bad_words": ((3,),)}, False),
        ({"bad_words": ((3,), (3, 4))}, True),
        ({"repetition_penalty": 1.1}, True),
        ({"frequency_penalty": 0.1}, True),
        ({"presence_penalty": -0.1}, True),
    ],
)
def test_history_is_needed_by_penalties_and_by_longer_bad_words_only(settings, needed):
    assert SamplingParams(**settings).needs_history is needed
