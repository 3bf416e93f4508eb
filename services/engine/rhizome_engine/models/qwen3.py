"""Qwen 3: queries and keys are normalised per head, and heads need not add up to the hidden size."""

from __future__ import annotations

from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.model_config import ModelConfig
from rhizome_engine.models.family import Family, decoder_config, with_defaults
from rhizome_engine.models.qwen2 import qwen_layers

_DEFAULTS = {"max_position_embeddings": 32768, "head_dim": 128, "num_key_value_heads": 32}


def _read_config(given: JsonFields) -> ModelConfig:
    fields = with_defaults(given, _DEFAULTS)
    attention_bias = fields.flag("attention_bias", False)
    return decoder_config(
        fields, qkv_bias=attention_bias, output_bias=attention_bias, qk_norm=True, layers=qwen_layers(fields)
    )


FAMILY = Family(_read_config)
