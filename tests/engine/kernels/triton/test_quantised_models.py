"""Whole models of few bits: Triton's kernels beside the reference's, and what the formats cost."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rhizome_engine.batch import Batch
from rhizome_engine.runner import ModelRunner
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint
from rhizome_testing.quantised_checkpoints import (
    awq_tensors,
    compressed_tensors,
    float_tensors,
    gptq_tensors,
    round_floats,
    round_matrix,
    write_quantised_checkpoint,
)
from rhizome_testing.sampling_batch import sampling_batch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = LlamaShape(
    vocab_size=264,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
)
"""So small because the interpreter takes milliseconds for a program."""
LARGER = LlamaShape(hidden_size=256, intermediate_size=704)
MOST_ERROR = {"int8": 0.06, "fp8": 0.18, "int4": 0.4}
"""Of the logits of LARGER, whose weights are random: no structure survives rounding there."""


def logits(checkpoint: Path, kernels: str, count: int, step: int, **settings: object) -> Tensor:
    """Logits of `count` tokens, `step` of them in each step."""
    settings = {"dtype": "float32", **settings}
    runner = ModelRunner(
        checkpoint, device=DEVICE, kernels=kernels, attention="sdpa", num_pages=16, **settings
    )
    ids = np.random.default_rng(3).integers(0, runner.config.vocab_size, count)
    found = []
    for start in range(0, count, step):
        positions = np.arange(start, min(start + step, count))
        batch = Batch(
            token_ids=ids[positions],
            positions=positions,
            slot_mapping=positions,
            query_start=np.array([0, len(positions)], np.int32),
            context_len=np.array([positions[-1] + 1], np.int32),
            page_table=np.arange(16, dtype=np.int32)[None],
            slots=np.zeros(1, np.int64),
            sampling=sampling_batch([], [], runner.config.vocab_size, rows=[]),
        )
        found.append(runner.logits(batch).cpu())
    return torch.cat(found)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def config(layout: str, weights: dict, **more: object) -> dict:
    group = {"targets": ["Linear"], "weights": weights, **more}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def per_token(kind: str) -> dict:
    return {"num_bits": 8, "type": kind, "strategy": "token", "dynamic": True}


CHECKPOINTS = {
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
        lambda _name, weight: round_matrix(weight, 4, 32, symmetric=False),
        awq_tensors,
    ),
    "gptq, 8 bits, whole rows": (
        {"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": True, "desc_act": False},
        lambda _name, weight: round_matrix(weight, 8, weight.shape[1], symmetric=True),
        gptq_tensors,
    ),
    "compressed-tensors int8": (
        config(
            "int-quantized",
            {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
            input_activations=per_token("int"),
        ),
        lambda _name, weight: round_matrix(weight, 8, weight.shape[1], symmetric=True),
        partial(compressed_tensors, packed=False, symmetric=True),
    ),
    "compressed-tensors fp8": (
        config(
            "float-quantized",
            {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
            input_activations=per_token("float"),
        ),
        lambda _name, weight: round_floats(weight),
        float_tensors,
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_small_steps_give_the_logits_of_what_the_checkpoint_stands_for(tmp_path, name):
    """Three tokens, and in one of the cases then one."""
    count = 4 if name == "awq" else 3
    quantised, dense = write_quantised_checkpoint(tmp_path, SHAPE, *CHECKPOINTS[name])
    assert error(logits(quantised, "triton", count, 3), logits(dense, "torch", count, count)) < 1e-4


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name.startswith("compressed")])
def test_large_steps_round_activations_as_the_reference_does(tmp_path, name):
    quantised, _ = write_quantised_checkpoint(tmp_path, SHAPE, *CHECKPOINTS[name])
    assert error(logits(quantised, "triton", 20, 20), logits(quantised, "torch", 20, 20)) < 1e-4


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_small_steps_err_no_more_than_rounded_activations(tmp_path, quantization):
    checkpoint = write_llama_checkpoint(tmp_path, SHAPE)
    exact = logits(checkpoint, "torch", 16, 16)
    reference = error(logits(checkpoint, "torch", 16, 16, quantization=quantization), exact)
    assert error(logits(checkpoint, "triton", 16, 16, quantization=quantization), exact) < reference


def test_what_the_formats_cost_on_random_weights(tmp_path):
    checkpoint = write_llama_checkpoint(tmp_path, LARGER)
    exact = logits(checkpoint, "torch", 128, 128)
    errors = {
        name: error(logits(checkpoint, "torch", 128, 128, quantization=name), exact) for name in MOST_ERROR
    }
    assert all(errors[name] < most for name, most in MOST_ERROR.items()), errors
    assert errors["int8"] < errors["fp8"] < errors["int4"]
