"""Quantised checkpoints of all formats, and what they should compute."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rhizome_engine.batch import Batch
from rhizome_engine.checkpoint.loader import load_checkpoint
from rhizome_engine.kernels.torch_kernels import TorchKernels
from rhizome_engine.models.decoder import Decoder
from rhizome_engine.models.registry import family_of
from rhizome_engine.runner import ModelRunner
from rhizome_engine.weights.choose import Quantization, format_chooser
from rhizome_engine.weights.targets import ModelTargets
from rhizome_testing.checkpoints import LlamaShape
from rhizome_testing.quantised_checkpoints import (
    Rounded,
    awq_tensors,
    compressed_tensors,
    gptq_tensors,
    round_matrix,
)
from rhizome_testing.sampling_batch import sampling_batch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import LlamaForCausalLM


SHAPE = LlamaShape(hidden_size=64, intermediate_size=192, num_hidden_layers=2)
IDS = np.random.default_rng(3).integers(0, 256, 40)
LAST_LAYER = "model.layers.1."
PER_TOKEN = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}


def group_config(bits: int, group_size: int | None, *, symmetric: bool, layout: str, **more: object) -> dict:
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if group_size is None else "group",
        "group_size": group_size,
        "dynamic": False,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, **more}},
    }


def round_all(bits: int, group_size: int | None, symmetric: bool, dtype: torch.dtype = torch.float16):
    def round_module(_module: str, weight: Tensor) -> Rounded:
        return round_matrix(weight, bits, group_size or weight.shape[1], symmetric=symmetric, dtype=dtype)

    return round_module


def compressed(
    bits: int, group_size: int | None, symmetric: bool, packed: bool, dtype=torch.bfloat16
) -> tuple:
    layout = "pack-quantized" if packed else "int-quantized"
    return (
        group_config(bits, group_size, symmetric=symmetric, layout=layout),
        round_all(bits, group_size, symmetric, dtype),
        partial(compressed_tensors, packed=packed, symmetric=symmetric),
        f"int{bits}-g{group_size or 64}",
    )


def gptq(bits: int, group_size: int, symmetric: bool, v2: bool = False) -> tuple:
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "sym": symmetric,
        "desc_act": False,
    }
    if v2:
        config["checkpoint_format"] = "gptq_v2"
    size = None if group_size == -1 else group_size

    def round_module(_module: str, weight: Tensor) -> Rounded:
        positive = torch.where(torch.arange(len(weight))[:, None] % 3 == 0, weight.abs(), weight)
        # Where all are positive the zero point is 0, and 1 less than that is what the older layout stores.
        chosen = weight if symmetric else positive
        return round_matrix(chosen, bits, size or weight.shape[1], symmetric=symmetric)

    return (
        config,
        round_module,
        partial(gptq_tensors, v2=v2),
        f"int{bits}-g{size or 64}",
    )


def awq(group_size: int) -> tuple:
    config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    return config, round_all(4, group_size, False), awq_tensors, f"int4-g{group_size}"


CASES = {
    "compressed int4 group, symmetric": compressed(4, 32, True, True),
    "compressed int4 group, asymmetric": compressed(4, 32, False, True),
    "compressed int4 channel, asymmetric": compressed(4, None, False, True, torch.float32),
    "compressed int8 channel, packed": compressed(8, None, True, True),
    "compressed int8 group, packed, asymmetric": compressed(8, 64, False, True),
    "compressed int8 group, bytes": compressed(8, 32, True, False),
    "compressed int8 channel, bytes, asymmetric": compressed(8, None, False, False, torch.float16),
    "gptq int4 symmetric": gptq(4, 32, True),
    "gptq int4 asymmetric": gptq(4, 64, False),
    "gptq int4 asymmetric, whole rows": gptq(4, -1, False),
    "gptq int8 symmetric": gptq(8, 32, True),
    "gptq int8 asymmetric, v2": gptq(8, 32, False, v2=True),
    "gptq int4 symmetric, v2": gptq(4, 32, True, v2=True),
    "awq": awq(32),
    "awq, larger groups": awq(64),
}


def logits(runner: ModelRunner) -> Tensor:
    """Logits of all of IDS in one prefill."""
    count = len(IDS)
    pages = -(-count // runner.page_size)
    batch = Batch(
        token_ids=IDS.astype(np.int64),
        positions=np.arange(count),
        slot_mapping=np.arange(count),
        query_start=np.array([0, count], np.int32),
        context_len=np.array([count], np.int32),
        page_table=np.arange(pages, dtype=np.int32)[None],
        slots=np.zeros(1, np.int64),
        sampling=sampling_batch([], [], runner.config.vocab_size, rows=[]),
    )
    return runner.logits(batch)


def served(path: Path, **settings: object) -> ModelRunner:
    return ModelRunner(path, device="cpu", dtype="float32", kernels="torch", num_pages=8, **settings)


def expected_logits(dense: Path) -> Tensor:
    model = LlamaForCausalLM.from_pretrained(dense, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.from_numpy(IDS)[None]).logits[0]


def load(path: Path, quantization: Quantization = "none") -> ModelTargets:
    checkpoint = load_checkpoint(path)
    weights = checkpoint.open_weights()
    names = family_of(checkpoint.config.architecture).names
    kernels = TorchKernels(torch.device("cpu"), torch.float32)
    choose = format_chooser(quantization, torch.float32, names, weights.format_of)
    targets = Decoder(checkpoint.config, names, kernels, choose).targets
    weights.fill(targets)
    return targets


def matrix(targets: ModelTargets, module: str) -> Tensor:
    target = targets.matrices[module]
    return target.weight.to_dense()[target.start : target.start + target.rows]


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert (found - expected).norm() <= tolerance * expected.norm()
