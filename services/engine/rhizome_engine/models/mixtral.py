"""Mixtral: Mistral with a mixture of experts in every layer."""

from __future__ import annotations

from rhizome_engine.checkpoint.json_fields import JsonFields
from rhizome_engine.checkpoint.model_config import ExpertsConfig, LayerConfig, ModelConfig
from rhizome_engine.models.family import Family, TensorNames, decoder_config, with_defaults
from rhizome_engine.models.layer_types import same_windows
from rhizome_engine.models.stored_layout import SplitExperts

_DEFAULTS = {
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
}


def _read_config(given: JsonFields) -> ModelConfig:
    fields = with_defaults(given, _DEFAULTS)
    windows = same_windows(fields)
    return decoder_config(
        fields,
        layers=tuple(LayerConfig(window, experts=True) for window in windows),
        experts=ExpertsConfig(
            num_experts=fields.integer("num_local_experts", fields.values.get("num_experts", 8)),
            experts_per_token=fields.integer("num_experts_per_tok", 2),
            intermediate_size=fields.integer("intermediate_size"),
        ),
    )


FAMILY = Family(
    _read_config,
    TensorNames(
        router="block_sparse_moe.gate",
        expert="block_sparse_moe.experts.{expert}.",
        expert_gate_up=("w1", "w3"),
        expert_down="w2",
    ),
    SplitExperts("block_sparse_moe", "w1", "w3", "w2"),
)
