"""Small random Llama checkpoints in Hugging Face's layout, made where a test needs one.

A checkpoint is a directory with `config.json`, `generation_config.json`, safetensors (one file or shards with
an index), `tokenizer.json` (one token per byte, plus the special tokens of Llama 3) and
`tokenizer_config.json` with a chat template. Equal arguments give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rhizome_testing.byte_tokenizer import SPECIAL_TOKENS, write_byte_tokenizer


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """What a random Llama checkpoint looks like; the names are those of `config.json`.

    Attributes:
        head_dim: None leaves the key out of `config.json`, so that readers divide.
        rope_scaling: such as `{"rope_type": "linear", "factor": 2.0}`; None for plain rotary embeddings.
        rope_parameters_form: write `rope_parameters` as transformers 5 does.
        init_std: standard deviation of the weights, in multiples of 1 / sqrt(fan-in). At 1 the activations
            keep their size through the layers and the logits are spread enough for a stable argmax.
    """

    vocab_size: int = 320
    hidden_size: int = 64
    intermediate_size: int = 176
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int | None = None
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    rope_parameters_form: bool = False
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    eos_token_id: int | list[int] = field(
        default_factory=lambda: [SPECIAL_TOKENS["<|end_of_text|>"], SPECIAL_TOKENS["<|eot_id|>"]]
    )
    init_std: float = 1.0

    def to_config(self) -> dict[str, Any]:
        """Return `config.json`."""
        rope: dict[str, Any]
        if self.rope_parameters_form:
            scaling = dict(self.rope_scaling or {"rope_type": "default"})
            rope = {"rope_parameters": {"rope_theta": self.rope_theta, **scaling}}
        else:
            rope = {"rope_theta": self.rope_theta, "rope_scaling": self.rope_scaling}
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            **({} if self.head_dim is None else {"head_dim": self.head_dim}),
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "max_position_embeddings": self.max_position_embeddings,
            **rope,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "bos_token_id": SPECIAL_TOKENS["<|begin_of_text|>"],
            "eos_token_id": self.eos_token_id,
            "torch_dtype": "float32",
        }


def random_llama_weights(shape: LlamaShape, seed: int = 0) -> dict[str, Tensor]:
    """Draw all tensors of a Llama checkpoint, in float32, under Hugging Face's names.

    Norm gains lie around 1 and biases are not zero, so that a loader that forgets one is noticed.
    """
    generator = torch.Generator().manual_seed(seed)
    head_dim = shape.head_dim or shape.hidden_size // shape.num_attention_heads
    hidden, intermediate = shape.hidden_size, shape.intermediate_size
    q_size, kv_size = shape.num_attention_heads * head_dim, shape.num_key_value_heads * head_dim
    weights: dict[str, Tensor] = {}

    def linear(name: str, out_features: int, in_features: int, bias: bool) -> None:
        std = shape.init_std / in_features**0.5
        weights[f"{name}.weight"] = torch.randn(out_features, in_features, generator=generator) * std
        if bias:
            weights[f"{name}.bias"] = torch.randn(out_features, generator=generator) * 0.1

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = 1.0 + 0.1 * torch.randn(hidden, generator=generator)

    # Rows of norm 1, whatever the width: a tied output layer then gives logits of about the same spread.
    weights["model.embed_tokens.weight"] = (
        torch.randn(shape.vocab_size, hidden, generator=generator) * shape.init_std / hidden**0.5
    )
    for layer in range(shape.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        norm(f"{prefix}.input_layernorm")
        linear(f"{prefix}.self_attn.q_proj", q_size, hidden, shape.attention_bias)
        linear(f"{prefix}.self_attn.k_proj", kv_size, hidden, shape.attention_bias)
        linear(f"{prefix}.self_attn.v_proj", kv_size, hidden, shape.attention_bias)
        linear(f"{prefix}.self_attn.o_proj", hidden, q_size, shape.attention_bias)
        norm(f"{prefix}.post_attention_layernorm")
        linear(f"{prefix}.mlp.gate_proj", intermediate, hidden, shape.mlp_bias)
        linear(f"{prefix}.mlp.up_proj", intermediate, hidden, shape.mlp_bias)
        linear(f"{prefix}.mlp.down_proj", hidden, intermediate, shape.mlp_bias)
    norm("model.norm")
    if not shape.tie_word_embeddings:
        linear("lm_head", shape.vocab_size, hidden, bias=False)
    return weights


def write_llama_checkpoint(
    directory: Path,
    shape: LlamaShape | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    num_shards: int = 1,
    generation_config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a random checkpoint into `directory` (made if absent) and return it.

    Args:
        directory: where the files go.
        shape: sizes and options; the default is the smallest that is still grouped-query.
        seed: of the weights.
        dtype: in which the weights are stored.
        num_shards: 1 writes `model.safetensors`; more write numbered files and their index.
        generation_config: `generation_config.json`; by default only the eos ids.

    Raises:
        ValueError: the vocabulary cannot hold the byte tokenizer.
    """
    shape = shape or LlamaShape()
    directory.mkdir(parents=True, exist_ok=True)
    write_byte_tokenizer(directory, vocab_size=shape.vocab_size)
    config = {**shape.to_config(), "torch_dtype": str(dtype).removeprefix("torch.")}
    write_json(directory / "config.json", config)
    write_json(
        directory / "generation_config.json", generation_config or {"eos_token_id": shape.eos_token_id}
    )
    weights = {name: tensor.to(dtype) for name, tensor in random_llama_weights(shape, seed).items()}
    write_weights(directory, weights, num_shards=num_shards)
    return directory


def write_weights(directory: Path, weights: Mapping[str, Tensor], *, num_shards: int = 1) -> None:
    """Write tensors as safetensors: one file, or `num_shards` files and their index."""
    metadata = {"format": "pt"}
    if num_shards == 1:
        save_file(dict(weights), directory / "model.safetensors", metadata=metadata)
        return
    names = list(weights)
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        filename = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        # Round robin, so that the parts of one fused parameter come from different files.
        members = {name: weights[name] for name in names[shard::num_shards]}
        save_file(members, directory / filename, metadata=metadata)
        weight_map.update(dict.fromkeys(members, filename))
    total_size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    write_json(
        directory / "model.safetensors.index.json",
        {"metadata": {"total_size": total_size}, "weight_map": weight_map},
    )


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` with sorted keys."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
