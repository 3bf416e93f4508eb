"""Weights from one file or shards; damaged checkpoints are refused with the tensor's name."""

from __future__ import annotations

import json

import pytest
import torch

from rhizome_engine.checkpoint import CheckpointError, load_checkpoint
from rhizome_engine.models.registry import build_model
from rhizome_testing.checkpoints import (
    LlamaShape,
    random_llama_weights,
    write_llama_checkpoint,
    write_weights,
)

SHAPE = LlamaShape(attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
K_PROJ = "model.layers.1.self_attn.k_proj.weight"


def load_targets(directory, dtype=torch.float32):
    checkpoint = load_checkpoint(directory)
    model = build_model(
        checkpoint.config.architecture, checkpoint.config, device=torch.device("cpu"), dtype=dtype
    )
    targets = model.weight_targets()
    for target in targets.values():
        target.fill_(float("nan"))
    checkpoint.load_weights(targets)
    return targets


@pytest.mark.parametrize("num_shards", [1, 3])
def test_every_tensor_arrives_in_its_place(tmp_path, num_shards):
    write_llama_checkpoint(tmp_path, SHAPE, seed=4, num_shards=num_shards)
    targets = load_targets(tmp_path)
    expected = random_llama_weights(SHAPE, 4)
    assert set(targets) == set(expected)
    assert all(torch.equal(targets[name], tensor) for name, tensor in expected.items())


def test_weights_are_converted_to_the_models_dtype(tmp_path):
    write_llama_checkpoint(tmp_path, SHAPE, dtype=torch.bfloat16)
    assert load_checkpoint(tmp_path).config.dtype == "bfloat16"
    stored = random_llama_weights(SHAPE)[K_PROJ].bfloat16()
    assert torch.equal(load_targets(tmp_path)[K_PROJ], stored.float())
    assert torch.equal(load_targets(tmp_path, torch.bfloat16)[K_PROJ], stored)


def test_tensors_that_old_checkpoints_repeat_are_ignored_and_others_are_logged(tmp_path, caplog):
    write_llama_checkpoint(tmp_path)
    weights = random_llama_weights(LlamaShape())
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    write_weights(tmp_path, weights)
    load_targets(tmp_path)
    assert not caplog.records
    weights["model.layers.0.adapter.weight"] = torch.ones(8)
    write_weights(tmp_path, weights)
    load_targets(tmp_path)
    assert "1 tensors are not used, the first is model.layers.0.adapter.weight" in caplog.text


def broken(tmp_path, weights, num_shards=1):
    write_llama_checkpoint(tmp_path, SHAPE, num_shards=num_shards)
    write_weights(tmp_path, weights, num_shards=num_shards)
    return tmp_path


def test_a_missing_tensor_is_named(tmp_path):
    weights = random_llama_weights(SHAPE)
    del weights[K_PROJ]
    with pytest.raises(CheckpointError, match=rf"lack 1 tensors: {K_PROJ} \[32, 64\]"):
        load_targets(broken(tmp_path, weights))


def test_many_missing_tensors_are_counted(tmp_path):
    weights = {name: t for name, t in random_llama_weights(SHAPE).items() if "layers.1" not in name}
    with pytest.raises(CheckpointError, match=r"lack 16 tensors: .* and 11 more"):
        load_targets(broken(tmp_path, weights))


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(tmp_path):
    weights = random_llama_weights(SHAPE)
    weights[K_PROJ] = torch.zeros(64, 64)
    with pytest.raises(
        CheckpointError, match=rf"{K_PROJ} has shape \[64, 64\], but config.json asks for \[32, 64\]"
    ):
        load_targets(broken(tmp_path, weights))


def test_a_truncated_file_is_refused_with_the_tensor_that_is_cut_off(tmp_path):
    write_llama_checkpoint(tmp_path, SHAPE, num_shards=2)
    path = tmp_path / "model-00002-of-00002.safetensors"
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    last = max((entry["data_offsets"][1], name) for name, entry in header.items() if name != "__metadata__")[
        1
    ]
    path.write_bytes(data[:-10])
    with pytest.raises(
        CheckpointError, match=rf"00002-of-00002.safetensors is damaged: tensor {last} ends at byte"
    ):
        load_targets(tmp_path)


@pytest.mark.parametrize(
    ("keep", "message"), [(0, "does not begin with"), (100, "ends inside its header, after 100 bytes")]
)
def test_a_file_without_a_whole_header_is_refused(tmp_path, keep, message):
    write_llama_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=message):
        load_targets(tmp_path)


def test_a_file_of_something_else_is_refused(tmp_path):
    write_llama_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: .* download it again"):
        load_targets(tmp_path)


def test_absent_weights_and_absent_shards_are_named(tmp_path):
    write_llama_checkpoint(tmp_path, num_shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors does not exist"):
        load_targets(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"
    ):
        load_targets(tmp_path)


def test_an_index_that_lies_or_points_elsewhere_is_refused(tmp_path):
    write_llama_checkpoint(tmp_path, num_shards=2)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["ghost.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tensor ghost\.weight is missing"):
        load_targets(tmp_path)
    content["weight_map"]["ghost.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="must be a file beside the index"):
        load_targets(tmp_path)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map must be an object"):
        load_targets(tmp_path)
