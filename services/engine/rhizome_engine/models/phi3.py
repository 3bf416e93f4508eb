"""Phi 3 and 4: Llama with fused projections in the file; Phi-4-mini rotates part of each head only."""

from __future__ import annotations

from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.model_config import LayerConfig, ModelConfig
from rhizome_engine.models.family import Family, TensorNames, decoder_config, with_defaults
from rhizome_engine.models.layer_types import same_windows

_DEFAULTS = {
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}


def _read_config(given: JsonFields) -> ModelConfig:
    fields = with_defaults(given, _DEFAULTS)
    windows = same_windows(fields)
    return decoder_config(fields, layers=tuple(LayerConfig(window) for window in windows))


FAMILY = Family(_read_config, TensorNames(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",)))
