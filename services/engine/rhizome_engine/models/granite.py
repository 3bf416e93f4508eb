"""Granite: Llama with four multipliers."""

from __future__ import annotations

from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.model_config import ModelConfig
from rhizome_engine.models.family import Family, decoder_config


def _read_config(fields: JsonFields) -> ModelConfig:
    attention_bias = fields.flag("attention_bias", False)
    return decoder_config(
        fields,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=fields.flag("mlp_bias", False),
        embedding_multiplier=fields.number("embedding_multiplier", 1.0),
        residual_multiplier=fields.number("residual_multiplier", 1.0),
        logits_multiplier=1 / fields.number("logits_scaling", 1.0),
        attention_scale=fields.number("attention_multiplier", 1.0),
    )


FAMILY = Family(_read_config)
