"""What cannot be read of a quantised checkpoint is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.engine.checkpoint.quantised.checkpoints import CASES, LAST_LAYER, PER_TOKEN, SHAPE, load
from torch import Tensor

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_testing.checkpoints import write_json
from rhizome_testing.quantised_checkpoints import write_quantised_checkpoint


def quantised_with(tmp_path: Path, case: str, **changes: object) -> Path:
    quantised, _ = write_quantised_checkpoint(tmp_path, SHAPE, *CASES[case][:3])
    config = json.loads((quantised / "config.json").read_text())
    for path, value in changes.items():
        section = config["quantization_config"]
        *parents, key = path.split("__")
        for parent in parents:
            section = section[parent]
        section[key] = value
    write_json(quantised / "config.json", config)
    return quantised


ACTIVATIONS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("awq", {"quant_method": "fp8"}, "'fp8' is not supported; known: compressed-tensors .* awq .* gptq"),
        ("awq", {"quant_method": "bitsandbytes"}, "'bitsandbytes' is not supported"),
        ("awq", {"version": "gemv"}, "version must be gemm"),
        ("awq", {"bits": 8}, "bits must be 4"),
        ("gptq int4 symmetric", {"bits": 3}, "bits must be 4 or 8"),
        ("gptq int4 symmetric", {"checkpoint_format": "marlin"}, "must be gptq or gptq_v2"),
        ("gptq int4 symmetric", {"dynamic": {"+:.*down.*": {"bits": 8}}}, "dynamic must be without"),
        ("gptq int4 symmetric", {"group_size": 48}, "64 columns, which are no whole groups of 48"),
        (
            "compressed int4 group, symmetric",
            {"config_groups__group_0__weights__type": "float"},
            "4 bits of type 'float' are not supported; known: int of 4 or 8",
        ),
        (
            "compressed int4 group, symmetric",
            {"format": "nvfp4-pack-quantized"},
            "'nvfp4-pack-quantized' is not supported; known: pack-quantized",
        ),
        (
            "compressed int4 group, symmetric",
            {"config_groups__group_0__input_activations": ACTIVATIONS},
            "weights must be symmetric and of 8 bits",
        ),
        (
            "compressed int8 channel, packed",
            {"config_groups__group_0__input_activations": {**ACTIVATIONS, "dynamic": False}},
            "only int8 activations that are rounded per token",
        ),
        (
            "compressed int8 channel, packed",
            {"config_groups__group_0__input_activations": PER_TOKEN},
            "only int8 activations that are rounded per token",
        ),
        (
            "compressed int8 group, bytes",
            {"config_groups__group_0__weights__type": "float", "format": "float-quantized"},
            "float weights must be symmetric, with one scale per row",
        ),
        (
            "compressed int4 group, symmetric",
            {"ignore": ["re:.*o_proj"]},
            "has no group for it, or ignores it",
        ),
        (
            "compressed int4 group, symmetric",
            {"transform_config": {"a": 1}},
            "transform_config must be absent",
        ),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, case, changes, message):
    with pytest.raises(CheckpointError, match=message):
        load(quantised_with(tmp_path, case, **changes))


def replace_tensor(directory: Path, name: str, tensor: Tensor | None) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    tensors.pop(name)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, directory / "model.safetensors")


SCALES = f"{LAST_LAYER}mlp.down_proj.scales"


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (None, f"lack 1 tensors: {SCALES}"),
        (torch.ones(3, 64).half(), rf"{SCALES} has shape \[3, 64\], .* \[6, 64\]"),
        (torch.ones(6, 64).int(), f"{SCALES} holds I32, expected F16 or BF16 or F32"),
        (torch.full((6, 64), torch.nan).half(), "down_proj has scales that are NaN or infinite"),
    ],
)
def test_a_damaged_tensor_is_named(tmp_path, tensor, message):
    quantised, _ = write_quantised_checkpoint(tmp_path, SHAPE, *CASES["gptq int4 symmetric"][:3])
    replace_tensor(quantised, SCALES, tensor)
    with pytest.raises(CheckpointError, match=message):
        load(quantised)
