"""Each layout in which a family's files are found gives the logits of transformers, without a warning."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rhizome_testing.checkpoints import write_weights
from rhizome_testing.family_cases import CASES
from rhizome_testing.random_models import save_random_model

PROMPT = np.random.default_rng(7).integers(0, 256, 40).tolist()
SEEING = "gemma3, the text part of a model that sees"


def assert_same_logits(checkpoint, model, load, drive, caplog):
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0]
    with caplog.at_level(logging.WARNING):
        found = drive(load(checkpoint, "torch")).all_logits(PROMPT, [40])
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert not [record for record in caplog.records if record.name.startswith("rhizome")]


def rewrite(checkpoint, rename, num_shards=2):
    weights = {rename(name): tensor for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    (checkpoint / "model.safetensors").unlink()
    write_weights(checkpoint, weights, num_shards=num_shards)


@pytest.mark.parametrize("case", ["qwen3 moe, some layers dense, not normalised", "mixtral, window"])
def test_fused_experts(tmp_path, load, drive, caplog, case):
    model = CASES[case].make()
    checkpoint = save_random_model(model, tmp_path, save_original_format=False)
    assert any(name.endswith("mlp.experts.down_proj") for name in load_file(checkpoint / "model.safetensors"))
    assert_same_logits(checkpoint, model, load, drive, caplog)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_a_model_that_sees(tmp_path, load, drive, caplog, prefix):
    model = CASES[SEEING].make()
    checkpoint = save_random_model(model, tmp_path)
    sees = "" if prefix.startswith("language_model") else "model."

    def rename(name):
        text = name.replace("language_model.model.", prefix)
        return text if text != name or "language_model" in name else sees + name

    rewrite(checkpoint, rename)
    assert_same_logits(checkpoint, model, load, drive, caplog)


@pytest.mark.parametrize("head", ["lm_head.weight", "language_model.lm_head.weight"])
def test_a_model_that_sees_with_a_head_of_its_own(tmp_path, load, drive, caplog, head):
    case = CASES[SEEING]
    model = type(case)(case.architecture, {**case.options, "tie_word_embeddings": False}).make()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    checkpoint = save_random_model(model, tmp_path)
    rewrite(checkpoint, lambda name: head if name.endswith("lm_head.weight") else name)
    assert_same_logits(checkpoint, model, load, drive, caplog)
