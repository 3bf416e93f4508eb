"""The same logits and the same text as transformers, on random checkpoints of many shapes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from rhizome_engine.runner import ModelRunner
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import LlamaForCausalLM

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHAPES = {
    "grouped-query, tied": LlamaShape(),
    "multi-head, untied, llama3 rope": LlamaShape(
        num_key_value_heads=4, tie_word_embeddings=False, rope_scaling=LLAMA3_SCALING, rope_theta=500000.0
    ),
    "multi-query, biases, linear rope": LlamaShape(
        num_key_value_heads=1,
        attention_bias=True,
        mlp_bias=True,
        rope_scaling={"rope_type": "linear", "factor": 4.0},
        num_hidden_layers=3,
    ),
    "explicit head_dim, rope_parameters": LlamaShape(
        hidden_size=48,
        head_dim=32,
        num_attention_heads=6,
        num_key_value_heads=3,
        rope_parameters_form=True,
        rope_scaling=LLAMA3_SCALING,
        tie_word_embeddings=False,
    ),
    "older rope spelling, attention bias only": LlamaShape(
        hidden_size=96,
        num_attention_heads=3,
        num_key_value_heads=3,
        attention_bias=True,
        rope_scaling={"type": "linear", "factor": 2.0},
        rms_norm_eps=1e-6,
    ),
}
PROMPT = np.random.default_rng(7).integers(0, 256, 150).tolist()


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def checkpoint(request, tmp_path):
    return write_llama_checkpoint(tmp_path / "model", request.param, seed=1)


@pytest.fixture
def oracle(checkpoint):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LlamaForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        ).eval()


def greedy_with_margin(oracle, prompt, num_tokens):
    """Return the likeliest continuation and the smallest lead that a chosen token had over the next."""
    ids, past, margin, output = torch.tensor([prompt]), None, float("inf"), []
    with torch.no_grad():
        for _ in range(num_tokens):
            result = oracle(ids, past_key_values=past, use_cache=True)
            past = result.past_key_values
            best = result.logits[0, -1].topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            output.append(int(best.indices[0]))
            ids = best.indices[None, :1]
    return output, margin


def test_logits_and_128_greedy_tokens_are_those_of_transformers(checkpoint, oracle, drive, sequence):
    runner = ModelRunner(checkpoint, device="cpu", dtype="float32", num_pages=64)
    driver = drive(runner)

    with torch.no_grad():
        expected = oracle(torch.tensor([PROMPT])).logits[0]
    for chunks in ([150], [1] * 20 + [7] * 10 + [60]):
        error = (driver.all_logits(PROMPT, chunks) - expected).abs().max() / expected.abs().max()
        assert error <= 1e-4

    expected_text, margin = greedy_with_margin(oracle, PROMPT, 128)
    assert margin > 1e-4, "the checkpoint's seed gives a near tie; take another seed"
    assert driver.generate([sequence(PROMPT)], 128) == [expected_text]
