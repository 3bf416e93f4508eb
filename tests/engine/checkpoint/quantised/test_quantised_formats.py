"""Quantised checkpoints give the logits of what their integers stand for, as transformers computes them."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rhizome_engine.batch import Batch
from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.loader import load_checkpoint
from rhizome_engine.kernels.torch_kernels import TorchKernels
from rhizome_engine.models.decoder import Decoder
from rhizome_engine.models.registry import family_of
from rhizome_engine.runner import ModelRunner
from rhizome_engine.weights.choose import Quantization, format_chooser
from rhizome_engine.weights.targets import ModelTargets, format_summary
from rhizome_testing.checkpoints import LlamaShape, random_llama_weights, write_json
from rhizome_testing.quantised_checkpoints import (
    Rounded,
    RoundedFloats,
    awq_tensors,
    compressed_tensors,
    float_tensors,
    gptq_tensors,
    round_floats,
    round_matrix,
    write_quantised_checkpoint,
)
from rhizome_testing.sampling_batch import sampling_batch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import LlamaForCausalLM

SHAPE = LlamaShape(hidden_size=64, intermediate_size=192, num_hidden_layers=2)
IDS = np.random.default_rng(3).integers(0, 256, 40)
LAST_LAYER = "model.layers.1."


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


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_logits_are_those_of_what_the_integers_stand_for(tmp_path, case, caplog):
    *parts, summary = case
    quantised, dense = write_quantised_checkpoint(tmp_path, SHAPE, *parts, num_shards=3)
    runner = served(quantised)
    assert summary in runner.weights_name
    assert_close(logits(runner), expected_logits(dense))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_int8_with_dynamic_activations_becomes_our_int8(tmp_path):
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    config = group_config(8, None, symmetric=True, layout="int-quantized", input_activations=activations)
    quantised, dense = write_quantised_checkpoint(
        tmp_path,
        SHAPE,
        config,
        round_all(8, None, True, torch.float32),
        partial(compressed_tensors, packed=False, symmetric=True),
    )
    runner = served(quantised)
    assert runner.weights_name == "int8, float32"
    # Activations are rounded to 8 bits, so the logits differ by about a percent.
    assert_close(logits(runner), expected_logits(dense), 0.05)
    expected, found = load(dense), load(quantised)
    assert all(torch.equal(matrix(found, name), matrix(expected, name)) for name in expected.matrices)


PER_TOKEN = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
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


def test_one_scale_for_a_whole_matrix_is_every_rows(tmp_path):
    def round_module(_module: str, weight: Tensor) -> Rounded:
        flat = round_matrix(weight.reshape(1, -1), 8, weight.numel(), symmetric=True)
        groups = torch.zeros(weight.shape[1], dtype=torch.int64)
        ones = torch.ones(len(weight), 1, dtype=torch.int64)
        return Rounded(8, flat.q.view(weight.shape), flat.scales * ones.half(), flat.zeros * ones, groups)

    config = group_config(8, None, symmetric=True, layout="int-quantized")
    config["config_groups"]["group_0"]["weights"]["strategy"] = "tensor"
    write_module = partial(compressed_tensors, packed=False, symmetric=True, one_scale=True)
    quantised, dense = write_quantised_checkpoint(tmp_path, SHAPE, config, round_module, write_module)
    assert_close(logits(served(quantised)), expected_logits(dense))


def test_groups_by_activation_order_are_kept_in_floating_point(tmp_path, caplog):
    order = torch.Generator().manual_seed(1)

    def round_module(_module: str, weight: Tensor) -> Rounded:
        columns = weight.shape[1]
        group_of = (torch.arange(columns) // 32)[torch.randperm(columns, generator=order)]
        return round_matrix(weight, 4, 32, symmetric=False, group_of=group_of)

    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": True}
    quantised, dense = write_quantised_checkpoint(tmp_path, SHAPE, config, round_module, gptq_tensors)
    runner = served(quantised)
    assert runner.weights_name == "float32"
    assert "activation order (desc_act)" in caplog.text
    assert_close(logits(runner), expected_logits(dense))


@pytest.mark.parametrize("ignored", [[f"{LAST_LAYER}mlp.up_proj", f"{LAST_LAYER}self_attn.o_proj"], None])
def test_what_a_checkpoint_leaves_in_floating_point_stays_there(tmp_path, ignored):
    """`up_proj` is computed together with `gate_proj`, which is integers: both become floating point."""
    patterns = ignored or [r"re:.*layers\.1\.(mlp\.up|self_attn\.o)_proj$"]
    left_alone = (f"{LAST_LAYER}mlp.up_proj", f"{LAST_LAYER}self_attn.o_proj")
    config, round_module, write_module, _ = compressed(4, 32, True, True)
    config["ignore"] += patterns

    def round_some(module: str, weight: Tensor) -> Rounded | None:
        return None if module in left_alone else round_module(module, weight)

    quantised, dense = write_quantised_checkpoint(tmp_path, SHAPE, config, round_some, write_module)
    targets = load(quantised)
    formats = {name: str(target.weight.format) for name, target in targets.matrices.items()}
    assert formats[f"{LAST_LAYER}self_attn.o_proj"] == "float32"
    assert formats[f"{LAST_LAYER}mlp.gate_proj"] == "float32"
    assert formats[f"{LAST_LAYER}self_attn.q_proj"] == "int4-g32"
    assert_close(logits(served(quantised)), expected_logits(dense))


def test_groups_of_modules_may_have_settings_of_their_own(tmp_path):
    first, round4, write_module, _ = compressed(4, 32, True, True)
    second, round8, _, _ = compressed(8, 64, True, True)
    eight = dict(second["config_groups"]["group_0"], targets=[r"re:.*down_proj$"])
    config = {**first, "config_groups": {"down": eight, "rest": first["config_groups"]["group_0"]}}

    def round_module(module: str, weight: Tensor) -> Rounded:
        return (round8 if module.endswith("down_proj") else round4)(module, weight)

    quantised, dense = write_quantised_checkpoint(tmp_path, SHAPE, config, round_module, write_module)
    assert set(format_summary(load(quantised)).split(", ")) == {"int4-g32", "int8-g64", "float32"}
    assert_close(logits(served(quantised)), expected_logits(dense))


def test_a_quantised_checkpoint_can_be_quantised_again(tmp_path):
    quantised, dense = write_quantised_checkpoint(tmp_path, SHAPE, *awq(32)[:3])
    again, from_dense = load(quantised, "int8"), load(dense, "int8")
    assert format_summary(again) == "int8"
    assert all(torch.equal(matrix(again, name), matrix(from_dense, name)) for name in again.matrices)


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


def test_no_weight_is_left_out_of_the_dense_twin(tmp_path):
    """The comparisons above mean something: rounding to 4 bits moves the logits far more than they allow."""
    _, dense = write_quantised_checkpoint(tmp_path, SHAPE, *CASES["awq"][:3])
    rounded = expected_logits(dense)
    from rhizome_testing.checkpoints import write_weights

    write_weights(dense, random_llama_weights(SHAPE))
    assert (expected_logits(dense) - rounded).norm() > 0.01 * rounded.norm()
