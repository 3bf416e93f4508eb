"""Checkpoints in e4m3: kept as they are, kept in floating point, or refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from tests.engine.checkpoint.quantised.checkpoints import (
    LAST_LAYER,
    PER_TOKEN,
    SHAPE,
    assert_close,
    expected_logits,
    group_config,
    load,
    logits,
    matrix,
    served,
)
from torch import Tensor

from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.runner import ModelRunner
from rhizome_testing.quantised_checkpoints import (
    RoundedFloats,
    float_tensors,
    round_floats,
    write_quantised_checkpoint,
)

FIXED = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}


def float_checkpoint(tmp_path, activations: dict | None, *, one_scale: bool = False) -> tuple[Path, Path]:
    config = group_config(8, None, symmetric=True, layout="float-quantized", input_activations=activations)
    config["config_groups"]["group_0"]["weights"] |= {
        "type": "float",
        "strategy": "tensor" if one_scale else "channel",
    }

    def round_module(_module: str, weight: Tensor) -> RoundedFloats:
        return round_floats(weight, one_scale=one_scale)

    write_module = partial(float_tensors, input_scale=activations is FIXED)
    return write_quantised_checkpoint(tmp_path, SHAPE, config, round_module, write_module, num_shards=2)


@pytest.mark.parametrize("one_scale", [False, True], ids=["a scale per row", "one scale"])
@pytest.mark.parametrize("activations", [PER_TOKEN, FIXED], ids=["per token", "fixed"])
def test_e4m3_with_rounded_activations_is_kept_as_it_is(tmp_path, activations, one_scale, caplog):
    quantised, dense = float_checkpoint(tmp_path, activations, one_scale=one_scale)
    with caplog.at_level("INFO"):
        runner = served(quantised)
    assert runner.weights_name == "fp8, float32"
    assert ("fixed scales of activations are left unused" in caplog.text) == (activations is FIXED)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    # Activations are rounded to three bits of mantissa, so the logits differ by some percent.
    assert_close(logits(runner), expected_logits(dense), 0.15)
    expected, found = load(dense), load(quantised)
    assert all(torch.equal(matrix(found, name), matrix(expected, name)) for name in expected.matrices)


def test_e4m3_beside_activations_that_stay_is_kept_in_floating_point(tmp_path):
    quantised, dense = float_checkpoint(tmp_path, None)
    runner = served(quantised)
    assert runner.weights_name == "float32"
    assert_close(logits(runner), expected_logits(dense))


def test_e4m3_that_is_no_number_is_named(tmp_path):
    quantised, _ = float_checkpoint(tmp_path, PER_TOKEN)
    (quantised / "model.safetensors.index.json").unlink()
    from safetensors.torch import load_file, save_file

    tensors = {}
    for shard in sorted(quantised.glob("*.safetensors")):
        tensors |= load_file(shard)
    name = f"{LAST_LAYER}mlp.down_proj.weight"
    tensors[name].view(torch.uint8)[5, 3] = 0xFF
    save_file(tensors, quantised / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"tensor {name} holds NaN"):
        load(quantised)


def test_native_kernels_refuse_e4m3_and_say_what_to_do(tmp_path):
    quantised, _ = float_checkpoint(tmp_path, PER_TOKEN)
    with pytest.raises(
        ValueError, match=r"do not multiply fp8: take --quantization int8.* or --kernels torch"
    ):
        ModelRunner(quantised, device="cpu", kernels="native", num_pages=8)
    runner = ModelRunner(quantised, device="cpu", kernels="native", num_pages=8, quantization="int8")
    assert runner.weights_name == "int8"
