"""Random checkpoints of several families, written without transformers: what the model asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.models.registry import family_of, parse_model_config
from rhizome_engine.runner.sizing import model_targets
from rhizome_engine.weights.format import Dense
from rhizome_testing.byte_tokenizer import write_byte_tokenizer
from rhizome_testing.checkpoints import write_json, write_weights

SIZES = {
    # No multiple of 32: the last rank has rows that stand for no token.
    "vocab_size": 330,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "eos_token_id": 257,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama, grouped-query": {"architectures": ["LlamaForCausalLM"]},
    "llama, biases, one key-value head, tied": {
        "architectures": ["LlamaForCausalLM"],
        "num_key_value_heads": 1,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "qwen3, QK norm": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 24},
    "gemma2, soft caps, norms after, tied": {
        "architectures": ["Gemma2ForCausalLM"],
        "head_dim": 24,
        "query_pre_attn_scalar": 20,
        "sliding_window": 8,
    },
    "qwen3 moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "head_dim": 24,
        "mlp_only_layers": [1],
        **EXPERTS,
    },
    "phi3, fused": {"architectures": ["Phi3ForCausalLM"], "pad_token_id": 0},
    "granite, multipliers": {
        "architectures": ["GraniteForCausalLM"],
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "logits_scaling": 0.5,
        "attention_multiplier": 0.2,
        "mlp_bias": True,
    },
}


def write_family(directory: Path, name: str, seed: int = 0, **options: Any) -> Path:
    """Write a checkpoint with random weights for every tensor that the family's model asks for."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {**SIZES, **FAMILIES[name], **options}
    write_json(directory / "config.json", config)
    parsed = parse_model_config(JsonFields.read(directory / "config.json"))
    names = family_of(parsed.architecture).names
    targets = model_targets(parsed, names, torch.float32, lambda _name, _size: Dense(torch.float32))
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for module, matrix in targets.matrices.items():
        std = 1 / matrix.shape[1] ** 0.5
        weights[f"{module}.weight"] = torch.randn(matrix.shape, generator=generator) * std
    for vector, target in targets.vectors.items():
        noise = 0.1 * torch.randn(target.shape, generator=generator)
        weights[vector] = noise if vector.endswith("bias") else noise + 1 - target.plus
    write_weights(directory, weights)
    write_byte_tokenizer(directory, vocab_size=parsed.vocab_size)
    return directory
