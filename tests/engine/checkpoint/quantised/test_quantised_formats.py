"""Quantised checkpoints give the logits of what their integers stand for, as transformers computes them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tests.engine.checkpoint.quantised.checkpoints import (
    CASES,
    LAST_LAYER,
    SHAPE,
    assert_close,
    awq,
    compressed,
    expected_logits,
    group_config,
    load,
    logits,
    matrix,
    round_all,
    served,
)
from torch import Tensor

from rhizome_engine.weights.targets import format_summary
from rhizome_testing.checkpoints import random_llama_weights
from rhizome_testing.quantised_checkpoints import (
    Rounded,
    compressed_tensors,
    gptq_tensors,
    round_matrix,
    write_quantised_checkpoint,
)


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


def test_no_weight_is_left_out_of_the_dense_twin(tmp_path):
    """The comparisons above mean something: rounding to 4 bits moves the logits far more than they allow."""
    _, dense = write_quantised_checkpoint(tmp_path, SHAPE, *CASES["awq"][:3])
    rounded = expected_logits(dense)
    from rhizome_testing.checkpoints import write_weights

    write_weights(dense, random_llama_weights(SHAPE))
    assert (expected_logits(dense) - rounded).norm() > 0.01 * rounded.norm()
