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
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be in"):
        SamplingParams(**{name: value})


def test_a_bias_out_of_range_is_refused_with_its_token():
    with pytest.raises(ValueError, match=r"^logit_bias\[5\] must be in"):
        SamplingParams(logit_bias={5: 2000.0})
