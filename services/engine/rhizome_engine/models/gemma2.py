"""Gemma 2: norms after the blocks too, soft caps, and a window in every other layer."""

from __future__ import annotations

from typing import Any

from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.model_config import LayerConfig, ModelConfig
from rhizome_engine.models.family import Family, TensorNames, decoder_config, with_defaults
from rhizome_engine.models.layer_types import layer_windows

GEMMA_DEFAULTS = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
_DEFAULTS = {
    **GEMMA_DEFAULTS,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "max_position_embeddings": 8192,
}
GEMMA_NAMES = TensorNames(mlp_norm="pre_feedforward_layernorm")


def _read_config(given: JsonFields) -> ModelConfig:
    fields = with_defaults(given, _DEFAULTS)
    num_layers = fields.integer("num_hidden_layers")
    windows = layer_windows(fields, [layer % 2 == 0 for layer in range(num_layers)])
    return gemma_config(
        fields,
        layers=tuple(LayerConfig(window) for window in windows),
        attention_softcap=fields.number("attn_logit_softcapping", 0.0, zero_allowed=True),
    )


def gemma_config(fields: JsonFields, **differences: Any) -> ModelConfig:
    """Read what Gemma 2 and 3 share."""
    attention_bias = fields.flag("attention_bias", False)
    return decoder_config(
        fields,
        activation_key="hidden_activation",
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        norm_plus_one=True,
        post_norms=True,
        embedding_multiplier=fields.integer("hidden_size") ** 0.5,
        attention_scale=fields.number("query_pre_attn_scalar") ** -0.5,
        logits_softcap=fields.number("final_logit_softcapping", 0.0, zero_allowed=True),
        **differences,
    )


FAMILY = Family(_read_config, GEMMA_NAMES)
