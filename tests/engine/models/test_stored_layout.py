"""Other layouts of a family's files, brought to the names of the model without copying anything."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from rhizome_engine.checkpoint.safetensors_file import SafetensorsFile
from rhizome_engine.models.stored_layout import SplitExperts, text_part, with_prefix

MIXTRAL = SplitExperts("block_sparse_moe", "w1", "w3", "w2")
QWEN = SplitExperts("mlp", "gate_proj", "up_proj", "down_proj")


@pytest.fixture
def stored(tmp_path):
    """Return a function that writes tensors and reads them back through a layout."""

    def read(tensors, layout):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
        file = SafetensorsFile(tmp_path / "a.safetensors")
        file.entries = layout(file.entries)
        return {name: file.tensor(name).clone() for name in file.entries}

    return read


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("layout", "names", "router"),
    [
        (MIXTRAL, ("w1", "w3", "w2"), "block_sparse_moe.gate"),
        (QWEN, ("gate_proj", "up_proj", "down_proj"), "mlp.gate"),
    ],
    ids=["mixtral", "qwen3 moe"],
)
def test_fused_experts_become_one_matrix_per_module(stored, layout, names, router, dtype):
    layer = "model.layers.3."
    gate_up, down = torch.randn(5, 12, 8).to(dtype), torch.randn(5, 8, 6).to(dtype)
    tensors = {
        f"{layer}mlp.experts.gate_up_proj": gate_up,
        f"{layer}mlp.experts.down_proj": down,
        f"{layer}mlp.gate.weight": torch.randn(5, 8),
        "model.norm.weight": torch.randn(8),
    }
    block = router.removesuffix(".gate")
    expected = {f"{layer}{router}.weight": tensors[f"{layer}mlp.gate.weight"]}
    expected["model.norm.weight"] = tensors["model.norm.weight"]
    for expert in range(5):
        prefix = f"{layer}{block}.experts.{expert}."
        expected[f"{prefix}{names[0]}.weight"] = gate_up[expert, :6]
        expected[f"{prefix}{names[1]}.weight"] = gate_up[expert, 6:]
        expected[f"{prefix}{names[2]}.weight"] = down[expert]
    found = stored(tensors, layout)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("layout", [MIXTRAL, QWEN])
def test_experts_that_are_stored_one_by_one_stay_as_they_are(stored, layout):
    block, module = layout.block, layout.modules["down_proj"][0]
    tensors = {
        f"model.layers.0.{block}.experts.0.{module}.weight": torch.randn(4, 2),
        f"model.layers.0.{block}.gate.weight": torch.randn(4, 2),
        "model.layers.0.mlp.gate_proj.weight": torch.randn(4, 2),
    }
    found = stored(tensors, layout)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("stored_name", "name"),
    [
        ("language_model.model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight"),
        ("model.language_model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("language_model.model.layers.0.mlp.down_proj.qweight", "model.layers.0.mlp.down_proj.qweight"),
        ("something.else", "something.else"),
        ("vision_tower.vision_model.post_layernorm.bias", None),
        ("model.vision_tower.vision_model.post_layernorm.bias", None),
        ("multi_modal_projector.mm_soft_emb_norm.weight", None),
        ("model.multi_modal_projector.mm_soft_emb_norm.weight", None),
    ],
)
def test_the_text_part_of_a_model_that_sees_goes_by_the_names_of_a_model_of_text(stored, stored_name, name):
    tensor = torch.randn(3)
    found = stored({stored_name: tensor}, text_part)
    assert list(found) == ([] if name is None else [name])
    assert all(torch.equal(value, tensor) for value in found.values())


@pytest.mark.parametrize(
    ("stored_name", "name"),
    [
        ("embed_tokens.weight", "model.embed_tokens.weight"),
        ("layers.11.self_attn.q_norm.weight", "model.layers.11.self_attn.q_norm.weight"),
        ("norm.weight", "model.norm.weight"),
        ("model.norm.weight", "model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_a_model_saved_without_its_output_layer_gets_the_prefix(stored, stored_name, name):
    assert list(stored({stored_name: torch.randn(3)}, with_prefix)) == [name]
