"""Mistral: Llama with a window in all layers or in none."""

from __future__ import annotations

from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.model_config import LayerConfig, ModelConfig
from rhizome_engine.models.family import Family, decoder_config, with_defaults
from rhizome_engine.models.layer_types import same_windows

DEFAULTS = {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096}


def _read_config(given: JsonFields) -> ModelConfig:
    fields = with_defaults(given, DEFAULTS)
    return decoder_config(fields, layers=tuple(LayerConfig(window) for window in same_windows(fields)))


FAMILY = Family(_read_config)
