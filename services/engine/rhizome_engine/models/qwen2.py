"""Qwen 2 and 2.5: Llama with biases on queries, keys and values, and perhaps windows in its later layers."""

from __future__ import annotations

from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.model_config import LayerConfig, ModelConfig
from rhizome_engine.models.family import Family, decoder_config, with_defaults
from rhizome_engine.models.layer_types import layer_windows

_DEFAULTS = {"max_position_embeddings": 32768, "num_key_value_heads": 32}


def _read_config(given: JsonFields) -> ModelConfig:
    fields = with_defaults(given, _DEFAULTS)
    return decoder_config(fields, qkv_bias=True, layers=qwen_layers(fields))


def qwen_layers(fields: JsonFields) -> tuple[LayerConfig, ...]:
    """Read which layers have a window: from `max_window_layers` on, where `use_sliding_window` is set."""
    first = fields.integer("max_window_layers", 28, minimum=0)
    enabled = fields.flag("use_sliding_window", False) and "sliding_window" in fields
    is_sliding = [layer >= first for layer in range(fields.integer("num_hidden_layers"))]
    return tuple(LayerConfig(window) for window in layer_windows(fields, is_sliding, enabled=enabled))


FAMILY = Family(_read_config)
