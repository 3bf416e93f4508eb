"""A file that does not fit its config is refused, and the tensor is named."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_testing.checkpoints import write_weights
from rhizome_testing.family_cases import CASES
from rhizome_testing.random_models import save_random_model


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Return a function that saves a case once and gives its directory."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = save_random_model(CASES[name].make(), tmp_path_factory.mktemp("original"))
        return made[name]

    return make


@pytest.fixture
def altered(original, tmp_path):
    """Return a function that writes a case again with other tensors; None takes one away."""

    def write(name, changes, num_shards=1):
        source = original(name)
        (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
        weights = {**load_file(source / "model.safetensors"), **changes}
        kept = {key: value for key, value in weights.items() if value is not None}
        write_weights(tmp_path, kept, num_shards=num_shards)
        return tmp_path

    return write


QWEN3_MOE = "qwen3 moe, some layers dense, not normalised"


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        (
            "phi3, window",
            {"model.layers.2.self_attn.qkv_proj.weight": None},
            r"lack 1 tensors: model.layers.2.self_attn.qkv_proj.weight \[128, 64\]",
        ),
        (
            "phi3, window",
            {"model.layers.2.self_attn.qkv_proj.weight": torch.ones(64, 64)},
            r"self_attn.qkv_proj.weight has shape \[64, 64\], but config.json asks for \[128, 64\]",
        ),
        (
            "phi3, window",
            {"model.layers.0.mlp.gate_up_proj.weight": torch.ones(112, 64)},
            r"gate_up_proj.weight has shape \[112, 64\], but config.json asks for \[224, 64\]",
        ),
        (
            QWEN3_MOE,
            {"model.layers.2.mlp.experts.4.up_proj.weight": None},
            r"lack 1 tensors: model.layers.2.mlp.experts.4.up_proj.weight \[24, 64\]",
        ),
        (
            QWEN3_MOE,
            {"model.layers.1.mlp.up_proj.weight": None},
            r"model.layers.1.mlp.up_proj.weight \[112, 64\]",
        ),
        (
            "mixtral",
            {"model.layers.0.block_sparse_moe.experts.1.w2.weight": torch.ones(112, 64)},
            r"experts.1.w2.weight has shape \[112, 64\], but config.json asks for \[64, 112\]",
        ),
        (
            "mixtral",
            {"model.layers.3.block_sparse_moe.gate.weight": torch.ones(4, 64)},
            r"block_sparse_moe.gate.weight has shape \[4, 64\], but config.json asks for \[5, 64\]",
        ),
        ("qwen2, no window", {"model.layers.0.self_attn.k_proj.bias": None}, r"self_attn.k_proj.bias \[32\]"),
        (
            "qwen3, tied",
            {"model.layers.1.self_attn.q_norm.weight": torch.ones(64)},
            r"q_norm.weight has shape \[64\], but config.json asks for \[24\]",
        ),
        (
            "gemma2, no soft caps",
            {"model.layers.0.pre_feedforward_layernorm.weight": None},
            r"lack 1 tensors: model.layers.0.pre_feedforward_layernorm.weight \[64\]",
        ),
        ("smollm3, own pattern, biases, untied", {"lm_head.weight": None}, r"lm_head.weight \[320, 64\]"),
    ],
)  # fmt: skip
def test_a_missing_or_misshapen_tensor_is_named(altered, load, case, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(altered(case, changes), "torch")


@pytest.mark.parametrize("num_shards", [1, 3])
def test_tensors_that_are_not_used_are_reported_and_harm_nothing(altered, load, caplog, num_shards):
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.layers.9.new": torch.ones(2),
    }
    with caplog.at_level(logging.WARNING):
        load(altered("granite", extra, num_shards), "torch")
    assert "1 tensors are not used, the first is model.layers.9.new" in caplog.text


def test_a_truncated_file_names_the_tensor_in_which_it_ends(altered, load):
    directory = altered(QWEN3_MOE, {})
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"tensor model\.\S+ ends at byte \d+, but the file has \d+"):
        load(directory, "torch")
