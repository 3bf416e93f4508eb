"""Rotary settings in every spelling, and what is refused."""

from __future__ import annotations

import math

import pytest

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.rope_config import RopeConfig, parse_rope, stretched_context

HEAD_DIM = 16
LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FACTORS = {"short_factor": [1] * 8, "long_factor": [2.0] * 8}
LONG = RopeConfig(
    kind="longrope",
    original_max_position=1024,
    attention_factor=math.sqrt(1.1),
    short_factors=(1.0,) * 8,
    long_factors=(2.0,) * 8,
)


def fields(values):
    return JsonFields({"max_position_embeddings": 2048, **values}, "config.json")


def parse(values):
    return parse_rope(fields(values), 2048, HEAD_DIM)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, RopeConfig()),
        ({"rope_theta": 5e5}, RopeConfig(theta=5e5)),
        ({"rope_scaling": {}}, RopeConfig()),
        ({"rope_scaling": {"rope_type": "default"}}, RopeConfig()),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, RopeConfig(kind="linear", factor=2.0)),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            RopeConfig(5e5, 1.0, "llama3", 32.0, 1.0, 4.0, 8192),
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
            RopeConfig(5e5, 1.0, "llama3", 32.0, 1.0, 4.0, 8192),
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 123.0}}, RopeConfig(theta=123.0)),
        ({"partial_rotary_factor": 0.5}, RopeConfig(rotary_fraction=0.5)),
        (
            {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 0.25}},
            RopeConfig(rotary_fraction=0.25),
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            RopeConfig(kind="dynamic", factor=2.0, original_max_position=2048),
        ),
    ],
)
def test_settings_are_read_in_every_spelling(values, expected):
    assert parse(values) == expected


def test_where_both_spellings_are_given_the_older_one_counts_as_in_transformers():
    both = {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
    }
    assert parse(both) == RopeConfig(kind="linear", factor=2.0)
    assert parse({**both, "rope_scaling": None}) == RopeConfig(theta=5.0)


@pytest.mark.parametrize(
    ("settings", "attention_factor"),
    [
        ({"factor": 4.0}, 0.1 * math.log(4) + 1),
        ({"factor": 0.5}, 1.0),
        ({"factor": 4.0, "attention_factor": 1.5}, 1.5),
        (
            {"factor": 4.0, "mscale": 0.5, "mscale_all_dim": 2.0},
            (0.05 * math.log(4) + 1) / (0.2 * math.log(4) + 1),
        ),
        ({"factor": 4.0, "mscale": 0.5}, 0.1 * math.log(4) + 1),
        ({"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0}, 0.1 * math.log(4) + 1),
    ],
)
def test_yarn_scales_by_what_the_section_says(settings, attention_factor):
    rope = parse({"rope_scaling": {"rope_type": "yarn", **settings}})
    assert rope.attention_factor == pytest.approx(attention_factor)


def test_yarn_has_the_defaults_of_the_paper_and_a_factor_that_follows_from_the_lengths():
    rope = parse(
        {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 256, "finetuned": True}}
    )
    assert (rope.factor, rope.beta_fast, rope.beta_slow, rope.truncate) == (8.0, 32.0, 1.0, True)
    settings = {"factor": 2, "beta_fast": 20, "beta_slow": 3, "truncate": False}
    rope = parse({"rope_scaling": {"type": "yarn", **settings}})
    assert (rope.factor, rope.beta_fast, rope.beta_slow, rope.truncate) == (2.0, 20.0, 3.0, False)


@pytest.mark.parametrize(
    "values",
    [
        {"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 1024, **FACTORS}},
        {"rope_scaling": {"type": "su", **FACTORS}, "original_max_position_embeddings": 1024},
        {"rope_scaling": {"type": "yarn", **FACTORS}, "original_max_position_embeddings": 1024},
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "original_max_position_embeddings": 7,
                "factor": 2.0,
                **FACTORS,
            },
            "original_max_position_embeddings": 1024,
        },
    ],
    ids=["now", "first name", "second name", "length beside the section"],
)
def test_longrope_is_read_in_every_spelling(values):
    assert parse(values) == LONG


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"type": "dynamic", "factor": 2.5}, 5120),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"type": "yarn", "factor": 4.0}, 2048),
        ({"type": "linear", "factor": 4.0}, 2048),
        ({"type": "llama3", **LLAMA3}, 2048),
    ],
)
def test_a_length_from_before_stretching_is_stretched(scaling, expected):
    values = fields({"rope_scaling": scaling})
    assert stretched_context(values, parse_rope(values, 2048, HEAD_DIM), 2048) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "mrope"}},
            "config.json: rope_scaling: rope_type 'mrope' is not supported; "
            "known: default, linear, dynamic, llama3, yarn, longrope",
        ),
        ({"rope_scaling": {"rope_type": ["linear"]}}, r"rope_type \['linear'\] is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor must be a number, but it is absent"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2, "alpha": 3}},
            "rope_scaling: alpha is not supported for rope_type 'linear'; known: factor, partial_",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "mrope_section": [1]}},
            "mrope_section is not supported",
        ),
        ({"rope_parameters": {"full_attention": {}}}, "full_attention is not supported"),
        ({"rope_parameters": []}, "rope_parameters must be an object"),
        (
            {"rope_scaling": {"type": "llama3", **LLAMA3, "low_freq_factor": 4}},
            "low_freq_factor must be below high_freq_factor 4",
        ),
        ({"rope_scaling": {"type": "yarn", "beta_slow": 32}}, "beta_slow must be below beta_fast 32"),
        (
            {"rope_scaling": {"type": "longrope", **FACTORS, "short_factor": [1] * 7}},
            "short_factor must be a list of 8 numbers, one per rotated pair",
        ),
        (
            {"rope_scaling": {"type": "longrope", **FACTORS, "long_factor": [0] * 8}},
            "long_factor must be a list of numbers greater than 0",
        ),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor must be at most 1"),
        ({"partial_rotary_factor": 0.2}, "rotate an even part of head_dim 16, but it is 0.2"),
        ({"partial_rotary_factor": 0.01}, "partial_rotary_factor must be"),
    ],
)
def test_what_would_change_the_angles_unseen_is_refused(values, message):
    with pytest.raises(CheckpointError, match=message):
        parse(values)
