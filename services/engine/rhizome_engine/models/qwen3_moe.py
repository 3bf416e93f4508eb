"""Qwen 3 with a mixture of experts in all layers or in some."""

from __future__ import annotations

from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.model_config import ExpertsConfig, LayerConfig, ModelConfig
from rhizome_engine.models.family import Family, decoder_config, with_defaults
from rhizome_engine.models.layer_types import layer_numbers, same_windows
from rhizome_engine.models.stored_layout import SplitExperts

_DEFAULTS = {"max_position_embeddings": 32768, "num_key_value_heads": 4}


def _read_config(given: JsonFields) -> ModelConfig:
    fields = with_defaults(given, _DEFAULTS)
    # transformers 5 writes Mixtral's name for what hub checkpoints call num_experts.
    num_experts = fields.integer("num_experts", fields.values.get("num_local_experts", 128), minimum=0)
    every = fields.integer("decoder_sparse_step", 1)
    dense = layer_numbers(fields, "mlp_only_layers")
    enabled = fields.flag("use_sliding_window", False) and "sliding_window" in fields
    layers = tuple(
        LayerConfig(window, experts=num_experts > 0 and layer not in dense and (layer + 1) % every == 0)
        for layer, window in enumerate(same_windows(fields, enabled=enabled))
    )
    experts = None
    if any(layer.experts for layer in layers):
        experts = ExpertsConfig(
            num_experts=num_experts,
            experts_per_token=fields.integer("num_experts_per_tok", 8),
            intermediate_size=fields.integer("moe_intermediate_size", 768),
            normalise=fields.flag("norm_topk_prob", False),
        )
    attention_bias = fields.flag("attention_bias", False)
    return decoder_config(
        fields,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        qk_norm=True,
        layers=layers,
        experts=experts,
    )


FAMILY = Family(_read_config, layout=SplitExperts("mlp", "gate_proj", "up_proj", "down_proj"))
