"""Weights from one file or shards; damaged checkpoints are refused with the tensor's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rhizome_engine.checkpoint import weight_files
from rhizome_engine.checkpoint.errors import CheckpointError
from rhizome_engine.checkpoint.loader import load_checkpoint
from rhizome_engine.kernels.torch_kernels import TorchKernels
from rhizome_engine.models.decoder import Decoder
from rhizome_engine.models.registry import family_of
from rhizome_engine.runner import ModelRunner
from rhizome_engine.weights.choose import Quantization, format_chooser
from rhizome_engine.weights.format import Dense
from rhizome_engine.weights.targets import ModelTargets
from rhizome_testing.checkpoints import (
    LlamaShape,
    random_llama_weights,
    write_llama_checkpoint,
    write_weights,
)

SHAPE = LlamaShape(attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
K_PROJ = "model.layers.1.self_attn.k_proj.weight"


def load_targets(
    directory: Path, dtype: torch.dtype = torch.float32, quantization: Quantization = "none"
) -> ModelTargets:
    checkpoint = load_checkpoint(directory)
    names = family_of(checkpoint.config.architecture).names
    kernels = TorchKernels(torch.device("cpu"), dtype)
    targets = Decoder(checkpoint.config, names, kernels, format_chooser(quantization, dtype, names)).targets
    for target in targets.vectors.values():
        target.tensor.fill_(float("nan"))
    for matrix in targets.matrices.values():
        if isinstance(matrix.weight.format, Dense):
            matrix.weight.fill(matrix.start, torch.full(matrix.shape, float("nan")))
    checkpoint.load_weights(targets)
    return targets


def tensor(targets: ModelTargets, name: str) -> torch.Tensor:
    """What became of a tensor of the checkpoint, in float32."""
    matrix = targets.matrices.get(name.removesuffix(".weight"))
    if matrix is None:
        return targets.vectors[name].tensor.float()
    return matrix.weight.to_dense()[matrix.start : matrix.start + matrix.rows]


def names_of(targets: ModelTargets) -> set[str]:
    return {f"{module}.weight" for module in targets.matrices} | set(targets.vectors)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_every_tensor_arrives_in_its_place(tmp_path, num_shards):
    write_llama_checkpoint(tmp_path, SHAPE, seed=4, num_shards=num_shards)
    targets = load_targets(tmp_path)
    expected = random_llama_weights(SHAPE, 4)
    assert names_of(targets) == set(expected)
    assert all(torch.equal(tensor(targets, name), values) for name, values in expected.items())


def test_weights_are_converted_to_the_models_dtype(tmp_path):
    write_llama_checkpoint(tmp_path, SHAPE, dtype=torch.bfloat16)
    assert load_checkpoint(tmp_path).config.dtype == "bfloat16"
    stored = random_llama_weights(SHAPE)[K_PROJ].bfloat16()
    assert torch.equal(tensor(load_targets(tmp_path), K_PROJ), stored.float())
    assert torch.equal(tensor(load_targets(tmp_path, torch.bfloat16), K_PROJ), stored.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("quantization", "error"), [("int8", 0.01), ("int4", 0.12)])
def test_any_checkpoint_is_quantised_while_it_is_loaded(tmp_path, dtype, quantization, error):
    write_llama_checkpoint(tmp_path, SHAPE, dtype=dtype, num_shards=2)
    targets = load_targets(tmp_path, quantization=quantization)
    for name, expected in random_llama_weights(SHAPE).items():
        found = tensor(targets, name)
        if name.removesuffix(".weight") in targets.matrices:
            assert (found - expected).norm() < error * expected.norm(), name
        else:
            assert torch.equal(found, expected.to(dtype).float()), name


def test_a_matrix_of_many_blocks_arrives_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "BLOCK_ELEMENTS", 300)
    write_llama_checkpoint(tmp_path, SHAPE, num_shards=3)
    targets = load_targets(tmp_path)
    expected = random_llama_weights(SHAPE)
    assert all(torch.equal(tensor(targets, name), values) for name, values in expected.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_what_cannot_be_rounded_is_named(tmp_path, quantization, value):
    weights = random_llama_weights(SHAPE)
    weights[K_PROJ][3, 5] = value
    directory = broken(tmp_path, weights)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor {K_PROJ} holds NaN or infinity"):
        load_targets(directory, quantization=quantization)
    assert tensor(load_targets(directory), K_PROJ)[3, 5] == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("name", [K_PROJ, "model.norm.weight"])
def test_integers_where_floating_point_belongs_are_named(tmp_path, name):
    weights = random_llama_weights(SHAPE)
    weights[name] = weights[name].to(torch.int32)
    with pytest.raises(CheckpointError, match=f"tensor {name} holds I32, expected F32 or BF16 or F16"):
        load_targets(broken(tmp_path, weights))


def test_a_header_that_contradicts_itself_is_refused(tmp_path):
    write_llama_checkpoint(tmp_path, SHAPE)
    path = tmp_path / "model.safetensors"
    header, data = read_parts(path)
    header[K_PROJ]["shape"][0] += 1
    write_parts(path, header, data)
    with pytest.raises(CheckpointError, match=rf"tensor {K_PROJ} \[33, 64\] of F32 cannot take 8192 bytes"):
        load_targets(tmp_path)
    header[K_PROJ]["shape"] = [-32, 64]
    write_parts(path, header, data)
    with pytest.raises(CheckpointError, match="does not begin with a safetensors header"):
        load_targets(tmp_path)


def test_a_tensor_in_an_unknown_type_is_refused_only_where_it_is_used(tmp_path):
    write_llama_checkpoint(tmp_path, SHAPE)
    path = tmp_path / "model.safetensors"
    header, data = read_parts(path)
    header["extra"] = {"dtype": "F8_E5M2", "shape": [4], "data_offsets": [0, 4]}
    write_parts(path, header, data)
    load_targets(tmp_path)
    header[K_PROJ]["dtype"] = "F8_E5M2"
    write_parts(path, header, data)
    with pytest.raises(CheckpointError, match=f"tensor {K_PROJ} holds F8_E5M2, expected F32"):
        load_targets(tmp_path)


def test_filling_leaves_the_number_of_threads_as_it_was(tmp_path):
    write_llama_checkpoint(tmp_path, SHAPE)
    before = torch.get_num_threads()
    load_targets(tmp_path)
    assert torch.get_num_threads() == before


def read_parts(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_parts(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


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


def test_an_index_beside_a_single_file_is_a_left_over(tmp_path):
    write_llama_checkpoint(tmp_path, SHAPE, seed=1, num_shards=2)
    write_weights(tmp_path, random_llama_weights(SHAPE, 2))
    targets = load_targets(tmp_path)
    assert torch.equal(tensor(targets, K_PROJ), random_llama_weights(SHAPE, 2)[K_PROJ])


def test_the_stored_type_is_what_the_files_hold_whatever_the_config_says(tmp_path):
    write_llama_checkpoint(tmp_path, SHAPE, dtype=torch.bfloat16)
    weights = random_llama_weights(SHAPE)
    for dtype, expected in ((torch.float32, "float32"), (torch.float16, "float16")):
        write_weights(tmp_path, {name: value.to(dtype) for name, value in weights.items()})
        assert load_checkpoint(tmp_path).open_weights().stored_dtype == expected
    mixed = {
        name: value.to(torch.float16 if "mlp" in name else torch.bfloat16) for name, value in weights.items()
    }
    write_weights(tmp_path, mixed)
    assert load_checkpoint(tmp_path).open_weights().stored_dtype == "float32"


def test_a_stored_head_that_is_not_the_embedding_is_used_as_in_transformers(tmp_path):
    tied = LlamaShape(tie_word_embeddings=True)
    write_llama_checkpoint(tmp_path, tied)
    weights = random_llama_weights(tied)
    embedding = weights["model.embed_tokens.weight"]
    for head, own in ((embedding.clone(), False), (embedding.flip(0).contiguous(), True)):
        write_weights(tmp_path, {**weights, "lm_head.weight": head})
        runner = ModelRunner(tmp_path, device="cpu", num_pages=4)
        assert runner.config.tie_word_embeddings is not own
        assert torch.equal(runner.model.head.weight.to_dense(), head)
