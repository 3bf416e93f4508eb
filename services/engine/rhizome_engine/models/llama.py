"""Llama 1 to 3.x, and what has the same shape."""

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
    )


FAMILY = Family(_read_config)
