"""Angles are those of transformers wherever the two definitions agree, and depend on the position alone."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.rope_config import RopeConfig, parse_rope
from rhizome_engine.layers.rotary import Rope, rotate

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import LlamaConfig
    from transformers import logging as transformers_logging
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

CPU = torch.device("cpu")
HEAD_DIM = 32
MAX_POSITION = 512


@pytest.fixture(autouse=True)
def _quiet():
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    yield
    transformers_logging.set_verbosity(verbosity)


def rope_of(parameters, max_position=MAX_POSITION, max_context=None):
    fields = JsonFields({"rope_parameters": parameters}, "config.json")
    config = parse_rope(fields, max_position, HEAD_DIM)
    return Rope(config, HEAD_DIM, CPU, max_context or max_position)


def table_of_transformers(parameters, positions, seq_len=None, max_position=MAX_POSITION):
    """Cosines and sines as transformers' Llama computes them."""
    config = LlamaConfig(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        max_position_embeddings=max_position,
        rope_parameters=dict(parameters),
    )
    function = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    frequencies, factor = function(config, CPU, seq_len=seq_len)
    angles = positions.float()[:, None] * frequencies
    return angles.cos() * factor, angles.sin() * factor


def assert_same(rope, parameters, positions, **options):
    expected = table_of_transformers(parameters, positions, **options)
    for got, wanted in zip(rope.table(positions), expected, strict=True):
        # A frequency that rounds the other way moves the angle of position 500 by 3e-5.
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)


THETAS = st.sampled_from([500.0, 10000.0, 1e6])
FACTORS = st.floats(1.0, 40.0)


@st.composite
def sections(draw):
    kind = draw(st.sampled_from(["linear", "llama3", "yarn"]))
    section = {"rope_type": kind, "rope_theta": draw(THETAS), "factor": draw(FACTORS)}
    section["partial_rotary_factor"] = draw(st.sampled_from([0.25, 0.5, 0.75, 1.0]))
    if kind != "linear":
        section["original_max_position_embeddings"] = draw(st.integers(16, 400))
    if kind == "llama3":
        section["low_freq_factor"] = draw(st.floats(0.5, 2.0))
        section["high_freq_factor"] = draw(st.floats(2.5, 8.0))
    if kind == "yarn":
        optional = {
            "beta_fast": draw(st.floats(8.0, 64.0)),
            "beta_slow": draw(st.floats(0.5, 4.0)),
            "mscale": draw(st.floats(0.1, 2.0)),
            "mscale_all_dim": draw(st.floats(0.1, 2.0)),
            "attention_factor": draw(st.floats(0.5, 2.0)),
            "truncate": draw(st.booleans()),
        }
        section.update({key: value for key, value in optional.items() if draw(st.booleans())})
    return section


@settings(max_examples=150, deadline=None)
@given(section=sections())
def test_scalings_without_memory_of_a_length_equal_those_of_transformers(section):
    assert_same(rope_of(section), section, torch.arange(0, MAX_POSITION, 7))


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
    "short_factor": np.linspace(1, 2, 16).tolist(),
    "long_factor": np.linspace(1, 30, 16).tolist(),
}


def test_longrope_equals_transformers_once_a_request_is_longer_than_the_original_context():
    assert_same(rope_of(LONGROPE), LONGROPE, torch.arange(100), seq_len=100)


def test_longrope_takes_the_short_factors_where_no_longer_context_is_served():
    positions = torch.arange(64)
    assert_same(rope_of(LONGROPE, max_context=64), LONGROPE, positions, seq_len=64)
    short_model = {**LONGROPE, "attention_factor": 1.1}
    assert_same(rope_of(short_model, max_position=64), short_model, positions, max_position=64)


def test_longrope_turns_a_key_by_the_same_angle_however_long_its_request_becomes():
    rope = rope_of(LONGROPE)
    early = rope.table(torch.arange(10))
    late = rope.table(torch.arange(200))
    assert torch.equal(early[0], late[0][:10]) and torch.equal(early[1], late[1][:10])


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_dynamic_equals_transformers_for_a_context_that_ends_at_the_token(fraction):
    section = {
        "rope_type": "dynamic",
        "rope_theta": 10000.0,
        "factor": 3.0,
        "partial_rotary_factor": fraction,
    }
    rope = rope_of(section, max_position=64)
    assert_same(rope, section, torch.arange(64), max_position=64)
    for position in (64, 65, 100, 191):
        assert_same(
            rope, section, torch.tensor([position]), seq_len=torch.tensor(position + 1), max_position=64
        )


def test_dynamic_turns_a_key_by_the_same_angle_whatever_else_is_in_the_step():
    rope = rope_of({"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}, max_position=64)
    positions = torch.arange(120)
    together = torch.stack(rope.table(positions))
    one_by_one = torch.cat([torch.stack(rope.table(position[None])) for position in positions], dim=1)
    torch.testing.assert_close(together, one_by_one, rtol=1e-6, atol=1e-6)
    shuffled = torch.randperm(120)
    torch.testing.assert_close(torch.stack(rope.table(shuffled)), together[:, shuffled], rtol=0, atol=0)


def test_only_the_rotated_part_of_a_head_changes_and_keeps_its_length():
    rope = Rope(RopeConfig(rotary_fraction=0.25), HEAD_DIM, CPU)
    x = torch.randn(9, 3, HEAD_DIM)
    turned = rotate(x, *rope.table(torch.arange(9)))
    assert rope.rotary_dim == 8
    assert torch.equal(turned[..., 8:], x[..., 8:])
    torch.testing.assert_close(turned[..., :8].norm(dim=-1), x[..., :8].norm(dim=-1))
    assert torch.equal(turned[0], x[0]) and not torch.equal(turned[1], x[1])


def test_scores_depend_on_the_distance_alone():
    rope = Rope(RopeConfig(), HEAD_DIM, CPU)
    q, k = torch.randn(1, 1, HEAD_DIM), torch.randn(1, 1, HEAD_DIM)

    def score(q_position, k_position):
        turned_q = rotate(q, *rope.table(torch.tensor([q_position])))
        turned_k = rotate(k, *rope.table(torch.tensor([k_position])))
        return float((turned_q * turned_k).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-4)
