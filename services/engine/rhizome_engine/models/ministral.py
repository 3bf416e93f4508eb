"""Ministral: Mistral that says for each layer whether it has a window."""

from __future__ import annotations

from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.model_config import LayerConfig, ModelConfig
from rhizome_engine.models.family import Family, decoder_config, with_defaults
from rhizome_engine.models.layer_types import layer_windows
from rhizome_engine.models.mistral import DEFAULTS


def _read_config(given: JsonFields) -> ModelConfig:
    fields = with_defaults(given, DEFAULTS)
    has_window = "sliding_window" in fields
    windows = layer_windows(fields, [has_window] * fields.integer("num_hidden_layers"))
    return decoder_config(fields, layers=tuple(LayerConfig(window) for window in windows))


FAMILY = Family(_read_config)
